"""Flux.1 that sees more than noise: Kontext a picture to change, Fill a mask and the rest of the picture."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import Conditioning
from .flux import Flux

SEEN: Final = "seen.patches"
"""What conditioning calls the patches of what is seen beside the noised latents."""


class FluxKontext(Flux):
    """The family of `FluxKontextPipeline`: patches of the picture to change stand behind those of the noised latents.

    As in diffusers' train_dreambooth_lora_flux_kontext.py, with the mean of its latents in place of a draw, as when it
    paints; it is cut to the size of the picture that it becomes.
    """

    companion: str | None = "conditions"

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return the patches (1, patches, 4 · channels) of the picture to change."""
        del pixels, prompt
        return {SEEN: self.pack(self._mean(companion))}

    def _mean(self, pixels: Tensor) -> Tensor:
        moments = self.encode_images(pixels)
        return self.sample_latents(moments, torch.zeros_like(moments[:, 0]))

    def beside(self, patches: Tensor, conditioning: Conditioning) -> Tensor:
        """Return patches of the noised latents, and behind them those of the picture to change."""
        return torch.cat([patches, conditioning[SEEN].to(patches)], dim=1)

    def places(self, batch: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the places of both, the second ones marked with a 1."""
        own = self._image_ids(batch, height, width, device)
        other = own.clone()
        other[..., 0] = 1
        return torch.cat([own, other])


class FluxFill(FluxKontext):
    """The family of `FluxFillPipeline`: each patch has that of the rest of the picture and of the mask beside it.

    diffusers has no training example of it; the velocity is the target, as of Flux, and the guidance that it is told
    is its pipeline's.
    """

    companion: str | None = "masks"
    guidance = 30.0

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return the patches of the picture without what the mask covers, and of the mask's pixels, side by side."""
        del prompt
        rest = self.pack(self._mean(pixels * (1 - companion)))
        mask = F.pixel_unshuffle(companion, self.factor)  # the pixels of a latent as its channels
        return {SEEN: torch.cat([rest, self.pack(mask).to(rest)], dim=-1)}

    def beside(self, patches: Tensor, conditioning: Conditioning) -> Tensor:
        """Return each patch with what is seen at its place."""
        return torch.cat([patches, conditioning[SEEN].to(patches)], dim=-1)

    def places(self, batch: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the places of patches."""
        return self._image_ids(batch, height, width, device)
