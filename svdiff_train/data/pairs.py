"""Companions of a folder's pictures: conditions of models that edit, masks of models that fill in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from PIL import Image, ImageOps
from torch import Tensor

from svdiff_delta.errors import InputError

from .cut import Cut
from .folder import SUFFIXES, Found, Picture
from .picture import inspect_image, open_image, to_tensor
from .unusable import usable

MASKS: Final = "masks"
"""The sub-folder whose pictures are masks: white where the picture is filled in."""


@dataclass(frozen=True)
class Paired:
    """What a folder holds whose pictures have something beside them.

    Attributes:
        images: the pictures that are taken, and what else is there; no sub-folder of what belongs to them.
        beside: what belongs to each of them, in order.
    """

    images: Found
    beside: tuple[Path, ...]


def find_companions(folder: Path, kind: str, images: Found, *, skip_bad: bool = False) -> Paired:
    """Return pictures with what belongs to each: the file of its name, whatever its end, in a sub-folder.

    Args:
        folder: of the pictures.
        kind: what the sub-folder is called.
        images: what was found in the folder.
        skip_bad: whether to go on without pictures that have nothing there, or nothing that fits.

    Raises:
        InputError: there is no such sub-folder; a picture has none or two there, or one that cannot be read or of
            another shape; or something there belongs to no picture.
    """
    place = folder / kind
    if not place.is_dir():
        raise InputError(
            f"{place}: there is no such folder, and the model needs one of {kind} for each picture",
            fix=f"put there, for a.png, a picture a.png of its {kind.removesuffix('s')}",
        )
    found: dict[str, list[Path]] = {}
    for path in sorted(place.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    pictures = {picture.path: picture for picture in images.pictures}
    stems = {Path(name).stem for name in (*images.skipped, *(path.name for path in pictures))}
    if lost := sorted(found.keys() - stems):
        raise InputError(f"{found[lost[0]][0]}: belongs to no picture in {folder}", fix="rename it, or take it away")

    def inspect(path: Path) -> Path:
        return _companion(place, pictures[path], found.get(path.stem, []))

    beside, skipped = usable(folder, pictures, inspect, "pairs", skip_bad=skip_bad)
    taken = replace(
        images,
        pictures=tuple(pictures[path] for path in beside),
        skipped=MappingProxyType({**images.skipped, **skipped}),
        folders=tuple(name for name in images.folders if name != kind),
    )
    return Paired(taken, tuple(beside.values()))


def _companion(place: Path, picture: Picture, found: Sequence[Path]) -> Path:
    if len(found) != 1:
        what = "nothing" if not found else f"{len(found)} files"
        raise InputError(
            f"{picture.path}: has {what} of its name in {place}", fix=f"put one there, such as {picture.path.name}"
        )
    height, width = inspect_image(found[0])
    if abs(height * picture.width - width * picture.height) > max(height, width, picture.height, picture.width):
        raise InputError(
            f"{found[0]}: has {width}x{height} pixels, and its picture {picture.width}x{picture.height}",
            fix="give both one shape",
        )
    return found[0]


def load_companion(path: Path, height: int, width: int, cut: Cut, *, mask: bool) -> Tensor:
    """Return what belongs to a picture, cut as the picture is.

    Args:
        path: of it.
        height: of the result, in pixels.
        width: of the result.
        cut: of the picture.
        mask: whether it is a mask: (1, height, width), 0 or 1; else (3, height, width) in [−1, 1].

    Raises:
        InputError: it cannot be read as a picture.
    """
    image = open_image(path)
    if cut.flipped:
        image = ImageOps.mirror(image)
    how = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
    fitted = ImageOps.fit(image, (width, height), how, centering=(cut.across, cut.down))
    if not mask:
        return to_tensor(fitted)
    return (to_tensor(fitted).mean(0, keepdim=True) >= 0).to(torch.float32)
