"""The one place where clips are opened: a folder of frames, an animated GIF, or an MP4 where a reader is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from PIL import Image

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta._util.limits import CLIP_FRAMES, PICTURE
from svdiff_delta._util.reading import regular_file
from svdiff_delta.errors import DeltaError, InputError, MissingExtraError

from .picture import inspect_image, open_image
from .picture_file import opened_animation

ANIMATED: Final = frozenset({".gif"})
FILMS: Final = frozenset({".mp4"})
FRAMES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""Ends of names of clips that are files, of films that a program of imageio-ffmpeg reads, and of frames."""


@dataclass(frozen=True)
class ClipSize:
    """How long and how large a clip is.

    Attributes:
        frames: how many it has.
        height: of each, in pixels.
        width: of each, in pixels.
    """

    frames: int
    height: int
    width: int


def is_clip(path: Path) -> bool:
    """Tell whether a path is a clip by its name: a GIF, an MP4, or a folder with pictures in it."""
    if path.is_dir():
        return any(each.suffix.lower() in FRAMES for each in path.iterdir())
    return path.suffix.lower() in ANIMATED | FILMS


def inspect_clip(path: Path) -> ClipSize:
    """Return how long and how large a clip is, after reading all of it.

    Raises:
        InputError: it cannot be read, its frames have several sizes, or it has too many.
        MissingExtraError: it is an MP4, and nothing is installed that reads one.
    """
    if path.is_dir():
        return _same_size(path, ((each.name, inspect_image(each)) for each in frame_files(path)))
    sizes = ((f"frame {index}", image.size[::-1]) for index, image in enumerate(_frames(path)))
    return _same_size(path, sizes)


def read_clip(path: Path, first: int, count: int) -> list[Image.Image]:
    """Return frames of a clip in RGB, in order.

    Args:
        path: of the clip.
        first: the first frame that is taken.
        count: how many are taken, one after the other.

    Raises:
        InputError: it cannot be read.
        MissingExtraError: it is an MP4, and nothing is installed that reads one.
    """
    if path.is_dir():
        return [open_image(each) for each in frame_files(path)[first : first + count]]
    return [image.convert("RGB") for image in islice(_frames(path), first, first + count)]


def frame_files(folder: Path) -> list[Path]:
    """Return the frames in a folder, in the order of their names.

    Raises:
        InputError: there are none, or too many.
    """
    found = sorted(each for each in folder.iterdir() if each.suffix.lower() in FRAMES and not each.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: holds no frames", fix=f"put pictures there ({', '.join(sorted(FRAMES))})")
    _check_count(folder, len(found))
    return found


def _same_size(path: Path, sizes: Iterator[tuple[str, tuple[int, int]]]) -> ClipSize:
    """Return the size of all frames.

    Raises:
        InputError: there are none, or one has another size than the first.
    """
    first: tuple[int, int] | None = None
    count = 0
    for name, size in sizes:
        first, count = first or size, count + 1
        if size != first:
            raise InputError(
                f"{path}: {name} has {size[1]}x{size[0]} pixels, those before it {first[1]}x{first[0]}",
                fix="give all frames of a clip one size",
            )
    if first is None:
        raise InputError(f"{path}: holds no frames", fix="remove or replace it")
    return ClipSize(count, *first)


def _check_count(path: Path, count: int) -> None:
    if count > CLIP_FRAMES:
        raise InputError(f"{path}: has more than {CLIP_FRAMES:,} frames", fix="cut it into shorter clips")


def _frames(path: Path) -> Iterator[Image.Image]:
    """Yield the frames of a file."""
    with _opened(path) as frames:
        for index, image in enumerate(frames):
            _check_count(path, index + 1)
            yield image


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[Image.Image]]:
    """Open a clip's file; whatever its reader raises within the block is one line."""
    with regular_file(path) as stream:
        if path.stat().st_size > PICTURE:
            raise InputError(f"{path}: has more than {PICTURE:,} bytes", fix="cut it into shorter clips")
        try:
            with interruptions_kept():
                yield _film(path) if path.suffix.lower() in FILMS else _gif(path, stream)
        except (DeltaError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - of broken files readers raise whatever happens to them
            raise InputError(f"{path}: could not be read as a clip ({error})", fix="remove or replace it") from None


def _gif(path: Path, stream: BinaryIO) -> Iterator[Image.Image]:
    with opened_animation(path, stream) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            yield image.convert("RGB")


def _film(path: Path) -> Iterator[Image.Image]:
    try:
        import imageio.v3 as reader
        import imageio_ffmpeg  # noqa: F401 - what reads it
    except ImportError:
        raise MissingExtraError("imageio-ffmpeg", "video") from None
    for frame in reader.imiter(path, plugin="FFMPEG"):
        yield Image.fromarray(frame)
