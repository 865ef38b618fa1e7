"""Count the pictures that a folder gave, for a line on the terminal and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .buckets import Size
from .folder import Found


@dataclass(frozen=True)
class Counts:
    """What is trained on, and what is not.

    Attributes:
        pictures: how many are taken.
        captions: how many of them have a caption.
        enlarged: how many are smaller than the size they are trained at.
        buckets: how many there are of each size, (height, width).
        skipped: why a picture is not taken, by name.
        ignored: files that are neither pictures nor captions.
        folders: sub-folders, which are not read.
        frames: of each, if they are clips.
    """

    pictures: int
    captions: int
    enlarged: int
    buckets: Mapping[Size, int]
    skipped: Mapping[str, str]
    ignored: tuple[str, ...]
    folders: tuple[str, ...]
    frames: int | None = None

    def lines(self) -> Iterator[str]:
        """Yield what a person should read, one fact per line."""
        sizes = ", ".join(f"{number} at {width}x{height}" for (height, width), number in self.buckets.items())
        what = "picture" if self.frames is None else "clip"
        length = "" if self.frames is None else f" of {self.frames} frames"
        yield f"{_number(self.pictures, what)}: {sizes}{length}; {self.captions} with captions"
        if self.enlarged:
            yield f"enlarged, because smaller than that: {self.enlarged}"
        for why in self.skipped.values():
            yield f"skipped: {why}"
        if self.ignored:
            yield f"not read: {', '.join(self.ignored)}"
        if self.folders:
            yield f"sub-folders, not read: {', '.join(self.folders)}"


def count(found: Found, sizes: Sequence[Size]) -> Counts:
    """Return the counts of a folder.

    Args:
        found: what is in it.
        sizes: at which (height, width) each of its pictures is trained.
    """
    pairs = list(zip(found.pictures, sizes, strict=True))
    return Counts(
        pictures=len(found.pictures),
        captions=sum(picture.caption is not None for picture in found.pictures),
        enlarged=sum(picture.height < height or picture.width < width for picture, (height, width) in pairs),
        buckets=dict(sorted(Counter(sizes).items())),
        skipped=found.skipped,
        ignored=found.ignored,
        folders=found.folders,
    )


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
