"""Flux: flow matching on packed latents, with a guidance that the distilled model is told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from .family import Conditioning
from .latent import FlowMatching

GUIDANCE: Final = 3.5
"""What a model with a guidance embedding is told in training, as in diffusers' train_dreambooth_lora_flux.py."""


class Flux(FlowMatching):
    """The family of `FluxPipeline`.

    As in diffusers' train_dreambooth_lora_flux.py, timesteps are uniform and the target is the velocity.

    Args:
        pipeline: the live pipeline.
    """

    density = "none"
    readers = ("text_encoder", "text_encoder_2")

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.resolution = pipeline.default_sample_size * self.factor
        self.unit = 2 * self.factor
        self.guided: bool = pipeline.transformer.config.guidance_embeds

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return T5's `states` (batch, tokens, width) and CLIP's `pooled` (batch, width)."""
        states, pooled, _ = self.pipeline.encode_prompt([*prompts], None, device=self.text_device)
        return {"states": states, "pooled": pooled}

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t = (1 − σ_t) z_0 + σ_t ε and the target, the velocity ε − z_0."""
        sigmas, noise = self.sigmas(timesteps, latents), noise.to(latents)
        return (1.0 - sigmas) * latents + sigmas * noise, noise - latents

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity, unpacked."""
        batch, _, height, width = noised.shape
        device, states = noised.device, self.on_denoiser(conditioning["states"], noised)
        with warnings.catch_warnings():
            # That weights in float32 under autocast take the slower way is a hint, and nobody can act on it.
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
            velocity = denoiser(
                hidden_states=self.pack(noised.to(self.dtype)),
                timestep=timesteps.to(device) / 1000,  # the transformer multiplies by 1000
                guidance=torch.full((batch,), GUIDANCE, device=device) if self.guided else None,
                pooled_projections=self.on_denoiser(conditioning["pooled"], noised),
                encoder_hidden_states=states,
                txt_ids=torch.zeros(states.shape[1], 3, device=device, dtype=self.dtype),
                img_ids=self.pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, self.dtype),
                return_dict=False,
            )[0]
        return self.unpack(velocity, height, width)

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) as patches (batch, height · width / 4, 4 · channels)."""
        return cast("Tensor", self.pipeline._pack_latents(latents, *latents.shape))

    def unpack(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Return patches as latents (batch, channels, height, width), `height` and `width` in latents."""
        pixels = (side * self.factor for side in (height, width))
        return cast("Tensor", self.pipeline._unpack_latents(patches, *pixels, self.factor))
