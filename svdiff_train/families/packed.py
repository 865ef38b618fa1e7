"""Pipelines that give the denoiser 2 × 2 patches of latents as tokens, by functions of their own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .recorded import Recorded


class Packed(Recorded):
    """A recorded family whose pipeline has `_pack_latents` and `_unpack_latents` as Flux has."""

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) as patches (batch, height · width / 4, 4 · channels)."""
        return cast("Tensor", self.pipeline._pack_latents(latents, *latents.shape))

    def unpack(self, found: Tensor, shape: torch.Size) -> Tensor:
        """Return patches as latents of a shape."""
        height, width = (side * self.factor for side in shape[-2:])
        return cast("Tensor", self.pipeline._unpack_latents(found, height, width, self.factor)).reshape(shape)
