"""Krea 2: patches of latents as tokens, states of several layers of its text encoder."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .packed import Packed


class Krea2(Packed):
    """The family of `Krea2Pipeline`, as diffusers' train_dreambooth_lora_krea2.py trains it.

    Args:
        pipeline: the live pipeline.
    """

    masks = {1: 0}  # noqa: RUF012

    def unpack(self, found: Tensor, shape: torch.Size) -> Tensor:
        """Return patches as latents of a shape."""
        height, width = (side * self.factor for side in shape[-2:])
        return cast("Tensor", self.pipeline._unpack_latents(found, height, width)).reshape(shape)
