"""Stable Diffusion 1.x and 2.x: a UNet in an autoencoder's latent space, predicting noise or velocity."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta.errors import TrainError


class StableDiffusion:
    """The family of `StableDiffusionPipeline`.

    Args:
        pipeline: the live pipeline.
    """

    def __init__(self, pipeline: Any) -> None:
        from diffusers import DDPMScheduler

        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.unet
        self.factor: int = pipeline.vae_scale_factor
        self.resolution: int = pipeline.unet.config.sample_size * self.factor
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.steps: int = self.scheduler.config.num_train_timesteps

    def encode_images(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) of pictures in [−1, 1], sampled with `noise`."""
        vae = self.pipeline.vae
        with torch.no_grad():
            posterior = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
            latents = posterior.mean + posterior.std * noise.to(vae.device, vae.dtype)
        return cast("Tensor", latents * vae.config.scaling_factor)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Return the text encoder's states (batch, tokens, width)."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return cast("Tensor", encoder(tokens.input_ids.to(encoder.device))[0])

    def latent_shape(self, resolution: int) -> tuple[int, ...]:
        """Return (channels, height, width) of one picture's latents."""
        side = resolution // self.factor
        return (self.pipeline.vae.config.latent_channels, side, side)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t and the target: ε, or the velocity of models that predict it."""
        noised = self.scheduler.add_noise(latents, noise, timesteps)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noised, noise
        if kind == "v_prediction":
            return noised, self.scheduler.get_velocity(latents, noise, timesteps)
        raise TrainError(f"the scheduler predicts {kind!r}", fix="use a base that predicts epsilon or v_prediction")

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """Return ε̂_θ(z_t | c, t)."""
        return cast("Tensor", denoiser(noised, timesteps, conditioning).sample)
