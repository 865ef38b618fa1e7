"""Parts of pictures that one subject should be in."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final, TypeAlias

import numpy as np
from PIL import Image

from svdiff_delta.errors import InputError

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom edge."""

WHOLE: Final[Box] = (0.0, 0.0, 1.0, 1.0)
MARGIN: Final = 9 / 8
"""Side of a half's square over its shorter side: the 36 of 32 pixels that the embedded base's CLIP learned."""


@dataclass(frozen=True)
class Region:
    """A part of a picture.

    Attributes:
        name: what results call it.
        box: its edges as shares of width and height, from 0 to 1.
        square: what is looked at is a square around the box's centre, a little larger than its shorter side; the
            picture's edge is repeated where that sticks out. Else it is the box itself, scaled to a square.
    """

    name: str
    box: Box
    square: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is the whole picture."""
        return not self.square and self.box == WHOLE


REGIONS: Final = {
    region.name: region
    for region in (
        Region("whole", WHOLE),
        Region("left", (0, 0, 0.5, 1), square=True),
        Region("right", (0.5, 0, 1, 1), square=True),
        Region("top", (0, 0, 1, 0.5), square=True),
        Region("bottom", (0, 0.5, 1, 1), square=True),
    )
}
"""The regions that have a name."""


def parse_region(text: str) -> Region:
    """Return a region by its name, or by its four edges: "0,0,0.5,1" is all of the left half.

    Raises:
        InputError: there is no such region.
    """
    if text in REGIONS:
        return REGIONS[text]
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{text}: there is no such region",
            fix=f"use {', '.join(REGIONS)}, or edges as shares of width and height, such as 0,0,0.5,1",
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(
            f"{text}: are not a region's edges", fix="write left,top,right,bottom, from 0 to 1, such as 0,0,0.5,1"
        )
    return Region(text, (left, top, right, bottom))


def crop(image: Image.Image, region: Region, size: int) -> Image.Image:
    """Return what is looked at of a picture in a region, as a square of `size` pixels in RGB.

    The sides of the embedded base's pictures are the crops that its judge and its CLIP's training make.
    """
    image = image.convert("RGB")
    left, top, right, bottom = _pixels(region, *image.size)
    beyond = ceil(max(0, -left, -top, right - image.width, bottom - image.height))
    if beyond:
        image = Image.fromarray(np.pad(np.asarray(image), ((beyond, beyond), (beyond, beyond), (0, 0)), "edge"))
    box = (left + beyond, top + beyond, right + beyond, bottom + beyond)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _pixels(region: Region, width: int, height: int) -> Box:
    left, top, right, bottom = (share * side for share, side in zip(region.box, (width, height) * 2, strict=True))
    if not region.square:
        return left, top, right, bottom
    reach = MARGIN * min(right - left, bottom - top) / 2
    across, down = (left + right) / 2, (top + bottom) / 2
    return across - reach, down - reach, across + reach, down + reach
