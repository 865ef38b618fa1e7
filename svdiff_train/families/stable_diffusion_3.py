"""Stable Diffusion 3 and 3.5: flow matching, with up to three text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from .family import Conditioning
from .latent import FlowMatching


class StableDiffusion3(FlowMatching):
    """The family of `StableDiffusion3Pipeline`.

    As in diffusers' train_dreambooth_lora_sd3.py, timesteps are logit-normal, and what is compared with the latents
    z_0 is z_t − σ_t v̂ (Karras et al. 2022, section 5): the squared error of the velocity v̂, times σ_t².

    Args:
        pipeline: the live pipeline.
    """

    density = "logit_normal"
    readers = ("text_encoder", "text_encoder_2")

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.resolution = pipeline.default_sample_size * self.factor
        self.unit = pipeline.patch_size * self.factor

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return all encoders' `states` (batch, tokens, width) and the first two's `pooled` (batch, width)."""
        states, _, pooled, _ = self.pipeline.encode_prompt(
            [*prompts], None, None, device=self.text_device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t = (1 − σ_t) z_0 + σ_t ε and the target, z_0."""
        sigmas = self.sigmas(timesteps, latents)
        return (1.0 - sigmas) * latents + sigmas * noise.to(latents), latents

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted latents, z_t − σ_t v̂_θ(z_t | c, t)."""
        velocity = denoiser(
            hidden_states=noised.to(self.dtype),
            timestep=timesteps.to(noised.device),
            encoder_hidden_states=self.on_denoiser(conditioning["states"], noised),
            pooled_projections=self.on_denoiser(conditioning["pooled"], noised),
            return_dict=False,
        )[0]
        return cast("Tensor", noised - self.sigmas(timesteps, noised) * velocity)
