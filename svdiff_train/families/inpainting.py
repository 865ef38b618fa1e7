"""Stable Diffusion that fills in: a UNet that sees a mask and the rest of the picture beside the noised latents."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from svdiff_delta.errors import TrainError

from .family import Conditioning
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL

MASK: Final = "seen.mask"
"""What conditioning calls the mask."""

REST: Final = "seen.rest"
"""What it calls the latents of the picture without what the mask covers."""


class Inpainting(StableDiffusion):
    """The family of `StableDiffusionInpaintPipeline` with a UNet of nine channels.

    The loss is that of diffusers' train_dreambooth_inpaint.py; masks are those beside the pictures, and not random.

    Args:
        pipeline: the live pipeline.

    Raises:
        TrainError: its UNet sees no mask; or as `StableDiffusion`.
    """

    companion: str | None = "masks"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        channels, latent = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
        if channels != 2 * latent + 1:
            raise TrainError(
                f"{type(pipeline).__name__}: its UNet takes {channels} channels and sees no mask",
                fix="train it as the pipeline that paints from text alone",
            )

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return the mask (1, 1, height, width) in latents, and the latents of the picture without what it covers."""
        del prompt
        mean = self.encode_images(pixels * (companion < 0.5))[:, 0]
        mask = F.interpolate(companion, size=mean.shape[-2:])
        return {MASK: mask, REST: mean * self.pipeline.vae.config.scaling_factor}

    def given(self, noised: Tensor, conditioning: Conditioning) -> Tensor:
        """Return z_t, the mask and the rest of the picture, one behind the other as channels."""
        return torch.cat([noised, *(conditioning[name].to(noised) for name in (MASK, REST))], dim=1)


class InpaintingXL(Inpainting, StableDiffusionXL):
    """The family of `StableDiffusionXLInpaintPipeline` with a UNet of nine channels.

    Args:
        pipeline: the live pipeline.

    Raises:
        TrainError: as `Inpainting`.
    """
