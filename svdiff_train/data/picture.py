"""One picture: opened, turned upright, flattened, scaled and cut to a size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from svdiff_delta.errors import InputError

from .cut import CENTRE, Cut
from .picture_file import opened_picture

STRIP: Final = 256
"""Lines of a picture that are flattened at a time."""


@dataclass(frozen=True)
class Loaded:
    """A picture as training takes it.

    Attributes:
        pixels: (3, height, width) in [−1, 1], float32; of a clip, (3, frames, height, width).
        sizes: height and width of the picture in the file, the upper and left edge of the cut in the scaled picture,
            height and width of the cut: what `Family.predict` takes as `sizes`.
        companion: what belongs to it beside it, cut alike: a picture (3, height, width), of a clip its first frame, or
            a mask (1, height, width).
    """

    pixels: Tensor
    sizes: tuple[int, int, int, int, int, int]
    companion: Tensor | None = None


def load_image(path: Path, height: int, width: int | None = None, cut: Cut = CENTRE) -> Loaded:
    """Return a picture upright by its EXIF tag, on white where it is transparent, scaled to cover a size and cut to it.

    Args:
        path: the file.
        height: of the result, in pixels.
        width: of the result; the height if not given.
        cut: what is taken where the picture has another aspect ratio, and whether it is mirrored.

    Raises:
        InputError: it cannot be read as a picture.
    """
    width = height if width is None else width
    picture = open_image(path)
    if cut.flipped:
        picture = ImageOps.mirror(picture)
    scale = max(height / picture.height, width / picture.width)
    top = round((picture.height * scale - height) * cut.down)
    left = round((picture.width * scale - width) * cut.across)
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS, centering=(cut.across, cut.down))
    return Loaded(to_tensor(fitted), (picture.height, picture.width, top, left, height, width))


def inspect_image(path: Path) -> tuple[int, int]:
    """Return height and width of a picture, upright, after reading all of it.

    Raises:
        InputError: it cannot be read as a picture.
    """
    with opened_picture(path) as image:
        _check(path, image)
        turned = image.getexif().get(_ORIENTATION, 1) in _ON_THEIR_SIDE
        width, height = image.size
        image.draft("L", (1, 1))  # a JPEG is read to its end all the same, several times faster
        image.load()
    return (width, height) if turned else (height, width)


_ORIENTATION: Final = 0x0112
_ON_THEIR_SIDE: Final = frozenset({5, 6, 7, 8})


def open_image(path: Path) -> Image.Image:
    """Return a picture in RGB, upright by its EXIF tag, on white where it is transparent.

    Raises:
        InputError: it cannot be read as a picture.
    """
    with opened_picture(path) as image:
        _check(path, image)
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB") if _is_opaque(upright) else _on_white(upright)


def _is_opaque(image: Image.Image) -> bool:
    return image.mode in ("RGB", "L", "CMYK", "YCbCr") and "transparency" not in image.info


def _on_white(image: Image.Image) -> Image.Image:
    """Return a picture with transparent places on white, a strip at a time: each takes as much again."""
    canvas = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        canvas.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return canvas


def _check(path: Path, image: Image.Image) -> None:
    """Refuse what would be trained on otherwise than it looks."""
    # A photograph with a preview beside it is an MPO: its first frame is the photograph.
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise InputError(f"{path}: is an animation of {frames} frames", fix="save one of them as a picture")
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path}: has more than 8 bits per channel", fix="save it with 8")


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as (3, height, width) in [−1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()
