"""A folder of pictures and captions: what is in it, what is taken, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from svdiff_delta.errors import InputError

from .captions import METADATA, read_captions
from .picture import inspect_image
from .unusable import usable

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        path: the file.
        height: in pixels, upright.
        width: in pixels, upright.
        caption: what its caption says; None if it has none.
    """

    path: Path
    height: int
    width: int
    caption: str | None = None


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        pictures: those that are taken, sorted by name.
        skipped: why a picture is not taken, by name.
        ignored: names of files that are neither pictures nor captions, sorted.
        folders: names of sub-folders, which are not read, sorted.
    """

    pictures: tuple[Picture, ...]
    skipped: Mapping[str, str]
    ignored: tuple[str, ...]
    folders: tuple[str, ...]


def find_images(folder: Path, *, skip_bad: bool | None = False) -> Found:
    """Return the pictures of a folder with their captions; each is read to its end once.

    Sub-folders are not read, and files whose name starts with a dot do not count.

    Args:
        folder: where they are.
        skip_bad: whether to go on without pictures that cannot be read; None where nobody can ask for that.

    Raises:
        InputError: there is no such folder, no picture in it, or one cannot be read; or captions are wrong
            (see `read_captions`).
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder", fix="name the folder of the subject's pictures")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in entries:
        if path.is_dir() and path.suffix.lower() in (*SUFFIXES, ".txt"):
            raise InputError(f"{path}: is a folder under the name of a file", fix="rename it, or take it away")
    files = [path for path in entries if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    others = {path.name for path in files} - {path.name for path in (*images, *texts)} - {METADATA}
    ignored, folders = tuple(sorted(others)), tuple(path.name for path in entries if path.is_dir())
    if not images:
        raise InputError(
            f"{folder}: holds no pictures ({len(files)} other files, {len(folders)} sub-folders)",
            fix=f"put a few there ({', '.join(sorted(SUFFIXES))})",
        )
    captions = read_captions(folder, [path.name for path in images], [path.name for path in texts])
    sizes, skipped = usable(folder, images, inspect_image, "pictures", skip_bad=skip_bad)
    pictures = tuple(Picture(path, *size, captions.get(path.name)) for path, size in sizes.items())
    return Found(pictures, MappingProxyType(skipped), ignored, folders)
