"""Stable Diffusion 1.x and 2.x: a UNet in an autoencoder's latent space, predicting noise or velocity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta.errors import TrainError

from .family import Conditioning
from .latent import LatentFamily


class StableDiffusion(LatentFamily):
    """The family of `StableDiffusionPipeline`.

    Args:
        pipeline: the live pipeline.

    Raises:
        TrainError: its scheduler predicts neither epsilon nor v_prediction, or its UNet does not say which size it was
            made for.
    """

    slot = "unet"
    readers = ("text_encoder",)

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        from diffusers import DDPMScheduler

        config = pipeline.unet.config
        self.resolution = _side(config.sample_size) * self.factor
        self.unit = self.factor * 2 ** (len(config.block_out_channels) - 1)
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction: str = self.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise TrainError(
                f"the base's scheduler predicts {self.prediction!r}",
                fix="use a base that predicts epsilon or v_prediction",
            )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return the text encoder's `states` (batch, tokens, width)."""
        states, _ = self.pipeline.encode_prompt([*prompts], self.text_device, 1, False)
        return {"states": states}

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return one timestep (), all of them equally likely."""
        return torch.randint(self.scheduler.config.num_train_timesteps, (), generator=generator)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε and the target: ε, or the velocity √ᾱ_t ε − √(1 − ᾱ_t) z_0."""
        noise, timesteps = noise.to(latents), timesteps.to(latents.device)
        noised = self.scheduler.add_noise(latents, noise, timesteps)
        if self.prediction == "epsilon":
            return noised, noise
        return noised, self.scheduler.get_velocity(latents, noise, timesteps)

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return ε̂_θ(z_t | c, t), or the predicted velocity."""
        states = self.on_denoiser(conditioning["states"], noised)
        prediction = denoiser(
            self.given(noised, conditioning).to(self.dtype),
            timesteps.to(noised.device),
            states,
            return_dict=False,
            **self.added(conditioning, noised),
        )
        return cast("Tensor", prediction[0])

    def given(self, noised: Tensor, conditioning: Conditioning) -> Tensor:
        """Return what the UNet sees of the picture: z_t."""
        del conditioning
        return noised

    def added(self, conditioning: Conditioning, noised: Tensor) -> dict[str, Any]:
        """Return what else the UNet is told; nothing here."""
        del conditioning, noised
        return {}

    def loss_weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
        """Return ones (batch,), or with γ min(SNR, γ)/SNR, which for the velocity is min(SNR, γ)/(SNR + 1)."""
        if snr_gamma is None:
            return torch.ones(timesteps.shape, device=timesteps.device)
        from diffusers.training_utils import compute_snr

        snr: Tensor = compute_snr(self.scheduler, timesteps)
        if self.prediction == "epsilon":
            return (snr_gamma / snr).clamp(max=1.0)  # and 1 where the SNR is 0
        return snr.clamp(max=snr_gamma) / (snr + 1.0)


def _side(sample_size: Any) -> int:
    """Return the side of the square that fits into what a UNet was made for, in latents.

    Args:
        sample_size: of its configuration: one number, or height and width.

    Raises:
        TrainError: it is neither.
    """
    sides = list(sample_size) if isinstance(sample_size, list | tuple) else [sample_size]
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TrainError(
            f"the UNet's configuration has the sample_size {sample_size!r}",
            fix="write there the latents' side, such as 64",
        )
    return int(min(sides))
