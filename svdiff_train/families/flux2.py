"""Flux.2: latents whose 2 × 2 patches are channels already, with or without a guidance that the model is told."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from .recorded import Recorded

GUIDANCE: Final = 3.5
"""What a model with a guidance embedding is told in training, as in diffusers' train_dreambooth_lora_flux2.py."""


class Flux2(Recorded):
    """The family of `Flux2Pipeline` and `Flux2KleinPipeline`, as diffusers' train_dreambooth_lora_flux2*.py train them.

    Args:
        pipeline: the live pipeline.
    """

    mode = True
    patch = 1  # the autoencoder's latents are patches already

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        told = pipeline.transformer.config.guidance_embeds and "is_distilled" not in pipeline.config
        self.guided: bool = told

    @property
    def guidance(self) -> float | None:  # type: ignore[override]
        """What the model is told; None where it has no place for that."""
        return GUIDANCE if self.guided else None

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) as tokens (batch, height · width, channels)."""
        return latents.flatten(2).transpose(1, 2)

    def unpack(self, found: Tensor, shape: torch.Size) -> Tensor:
        """Return tokens as latents of a shape."""
        return found.transpose(1, 2).reshape(shape)
