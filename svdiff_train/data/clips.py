"""A folder of clips and captions, for models of moving pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from PIL import Image, ImageOps

from svdiff_delta._util.limits import PICTURE
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import InputError

from .buckets import Size
from .captions import METADATA, read_captions
from .clip_file import ANIMATED, FILMS, ClipSize, frame_files, inspect_clip, is_clip, read_clip
from .counts import Counts
from .cut import Cut
from .folder import SUFFIXES
from .picture import Loaded, to_tensor
from .unusable import usable

HOW: Final = "put each clip's frames into a folder of its own, or give GIF or MP4 files"


@dataclass(frozen=True)
class Clip:
    """A clip that can be read.

    Attributes:
        path: the file, or the folder of its frames.
        size: how long and how large it is.
        caption: what its caption says; None if it has none.
    """

    path: Path
    size: ClipSize
    caption: str | None = None


@dataclass(frozen=True)
class FoundClips:
    """What a folder holds.

    Attributes:
        clips: those that are taken, sorted by name.
        skipped: why a clip is not taken, by name.
        ignored: names of files that are neither clips nor captions, sorted.
        folders: names of sub-folders without frames, sorted.
    """

    clips: tuple[Clip, ...]
    skipped: Mapping[str, str]
    ignored: tuple[str, ...]
    folders: tuple[str, ...]


def find_clips(folder: Path, frames: int, *, skip_bad: bool = False) -> FoundClips:
    """Return the clips of a folder with their captions; each is read to its end once.

    Args:
        folder: where they are.
        frames: how many of each are trained.
        skip_bad: whether to go on without clips that cannot be read, are too short or have frames of several sizes.

    Raises:
        InputError: there is no such folder, there are no clips in it, only single pictures, one cannot be read, is too
            short or has frames of several sizes; or captions are wrong (see `read_captions`).
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder", fix="name the folder of the subject's clips")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in entries if is_clip(path)]
    files = [path for path in entries if path not in paths and not path.is_dir()]
    pictures = [path.name for path in files if path.suffix.lower() in SUFFIXES]
    if pictures:
        raise InputError(f"{folder}: the model takes clips, and {pictures[0]} is a single picture", fix=HOW)
    if not paths:
        raise InputError(f"{folder}: holds no clips ({len(files)} other files)", fix=HOW)
    texts = [path.name for path in files if path.suffix.lower() == ".txt"]
    captions = read_captions(folder, [path.name for path in paths], texts)
    sizes, skipped = usable(folder, paths, lambda path: _long_enough(path, frames), "clips", skip_bad=skip_bad)
    clips = tuple(Clip(path, size, captions.get(path.name)) for path, size in sizes.items())
    ignored = tuple(path.name for path in files if path.name not in (*texts, METADATA))
    folders = tuple(path.name for path in entries if path.is_dir() and path not in paths)
    return FoundClips(clips, MappingProxyType(skipped), ignored, folders)


def _long_enough(path: Path, frames: int) -> ClipSize:
    size = inspect_clip(path)
    if size.frames < frames:
        raise InputError(
            f"{path}: has {size.frames} frames, and {frames} are trained", fix="set num_frames lower, or take it out"
        )
    return size


class FolderClips:
    """Clips of the subject, each with its caption, or with the run's prompt.

    Of a longer clip the frames in its middle are trained, one after the other, whatever its rate of frames.

    Args:
        found: what is in the folder.
        sizes: height and width at which each is trained.
        text: what describes clips without a caption.
        frames: how many of each are trained.
    """

    def __init__(self, found: FoundClips, sizes: tuple[Size, ...], text: str, frames: int) -> None:
        self.found, self.sizes, self.text, self.frames = found, sizes, text, frames

    def prompt(self, index: int) -> str:
        """Return a clip's caption, or the run's prompt."""
        return self.found.clips[index].caption or self.text

    def open(self, index: int, size: Size, cut: Cut) -> Loaded:
        """Return a clip (3, frames, height, width), all frames scaled and cut alike; its first belongs to it."""
        clip, (height, width) = self.found.clips[index], size
        first = (clip.size.frames - self.frames) // 2
        images = read_clip(clip.path, first, self.frames)
        pixels = torch.stack([to_tensor(_fitted(image, height, width, cut)) for image in images], dim=1)
        scale = max(height / clip.size.height, width / clip.size.width)
        top = round((clip.size.height * scale - height) * cut.down)
        left = round((clip.size.width * scale - width) * cut.across)
        sizes = (clip.size.height, clip.size.width, top, left, height, width)
        return Loaded(pixels, sizes, companion=pixels[:, 0])

    def counts(self) -> Counts:
        """Return what was found."""
        pairs = list(zip(self.found.clips, self.sizes, strict=True))
        return Counts(
            pictures=len(pairs),
            captions=sum(clip.caption is not None for clip, _ in pairs),
            enlarged=sum(clip.size.height < height or clip.size.width < width for clip, (height, width) in pairs),
            buckets={size: self.sizes.count(size) for size in sorted(set(self.sizes))},
            skipped=self.found.skipped,
            ignored=self.found.ignored,
            folders=self.found.folders,
            frames=self.frames,
        )

    def digest(self) -> str:
        """Return a digest of what is trained on: the clips' bytes and what describes them, in order."""
        total = hashlib.sha256()
        for index, clip in enumerate(self.found.clips):
            files = frame_files(clip.path) if clip.path.is_dir() else [clip.path]
            for part in (*(read_bytes(each, PICTURE) for each in files), self.prompt(index).encode()):
                total.update(hashlib.sha256(part).digest())
        return total.hexdigest()


def _fitted(image: Image.Image, height: int, width: int, cut: Cut) -> Image.Image:
    """Return a frame, scaled to cover a size and cut to it."""
    given = ImageOps.mirror(image) if cut.flipped else image
    return ImageOps.fit(given, (width, height), Image.Resampling.LANCZOS, centering=(cut.across, cut.down))


KINDS: Final = tuple(sorted(ANIMATED | FILMS))
"""Ends of names of clips that are files."""
