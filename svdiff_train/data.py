"""The few pictures of a subject: found, opened, turned upright, cropped square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from svdiff_delta.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def find_images(folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted by name.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder", fix="name the folder of the subject's pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder}: holds no pictures", fix=f"put a few there ({', '.join(sorted(SUFFIXES))})")
    return found


def load_image(path: Path, resolution: int) -> Tensor:
    """Return a picture (3, resolution, resolution) in [−1, 1], upright by its EXIF tag, its centre square.

    Raises:
        InputError: it cannot be read as a picture.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: could not be read as a picture ({error})", fix="remove or replace it") from None
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return to_tensor(ImageOps.fit(flat, (resolution, resolution), Image.Resampling.LANCZOS))


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as (3, height, width) in [−1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1).contiguous()
