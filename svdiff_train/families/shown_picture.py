"""Pixels as a picture, for models that look at one."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def as_picture(pixels: Tensor) -> Image.Image:
    """Return pixels (3, height, width) in [−1, 1] as an RGB picture."""
    whole = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(whole.cpu().numpy())
