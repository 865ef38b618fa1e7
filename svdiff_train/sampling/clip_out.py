"""Clips as files: an animated GIF, an MP4 where a writer is installed, or a folder of frames."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from svdiff_delta._util.atomic import replace_file, replace_folder
from svdiff_delta._util.json import JSON, canonical_json
from svdiff_delta.errors import InputError, MissingExtraError

from .png import png_bytes

FPS: Final = 16
"""Frames in a second where nothing is said."""

ENDS: Final = (".gif", ".mp4", "")
"""Ends of names that say how a clip is written; none is a folder of frames."""


def check_clip_path(path: Path) -> None:
    """Raise InputError if a name does not say how a clip is written, and MissingExtraError if nothing can write it."""
    suffix = path.suffix.lower()
    if suffix not in ENDS:
        raise InputError(
            f"{path}: the pipeline makes clips, which are written as GIF, MP4 or a folder of frames",
            fix=f"call it {path.with_suffix('.gif')}, or give a name without an end for a folder",
        )
    if suffix == ".mp4":
        _writer()


def save_clip(
    frames: Sequence[Image.Image],
    path: Path,
    facts: Mapping[str, JSON],
    *,
    fps: int = FPS,
    overwrite: bool = False,
) -> None:
    """Write a clip, atomically; a GIF and the frames of a folder say how they were painted.

    Args:
        frames: in order, all of one size.
        path: ends in `.gif` or `.mp4`; any other name is a folder.
        facts: what to say of it.
        fps: frames in a second.
        overwrite: whether what is there is replaced.

    Raises:
        OutputError: it exists, or the disk refused.
        MissingExtraError: it is an MP4, and nothing is installed that writes one.
    """
    suffix = path.suffix.lower()
    if suffix == "":
        with replace_folder(path, overwrite=overwrite) as folder:
            for index, frame in enumerate(frames):
                (folder / f"{index:05d}.png").write_bytes(png_bytes(frame, facts))
        return
    raw = mp4_bytes(frames, fps) if suffix == ".mp4" else gif_bytes(frames, facts, fps)
    with replace_file(path, overwrite=overwrite) as stream:
        stream.write(raw)


def gif_bytes(frames: Sequence[Image.Image], facts: Mapping[str, JSON], fps: int = FPS) -> bytes:
    """Return a clip as a GIF that says how it was painted in its comment; the same clip gives the same bytes."""
    stream = BytesIO()
    first, *others = (frame.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT) for frame in frames)
    duration = max(20, round(1000 / fps))  # players take less for a mistake
    comment = canonical_json(dict(facts))
    first.save(stream, "GIF", save_all=True, append_images=others, duration=duration, loop=0, comment=comment)
    return stream.getvalue()


def mp4_bytes(frames: Sequence[Image.Image], fps: int = FPS) -> bytes:
    """Return a clip as an MP4 with H.264, whose sides are even.

    Raises:
        MissingExtraError: nothing is installed that writes one.
    """
    writer = _writer()
    stacked = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "clip.mp4"
        how = {"fps": fps, "macro_block_size": 2, "output_params": ["-bitexact"]}
        writer.imwrite(place, stacked, plugin="FFMPEG", is_batch=True, **how)
        return place.read_bytes()


def _writer() -> Any:
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401 - what writes it
    except ImportError:
        raise MissingExtraError("imageio-ffmpeg", "video") from None
    return imageio.v3
