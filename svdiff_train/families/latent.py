"""Share what several families need: an autoencoder's latents, and the noise process of flow matching."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta.errors import TrainError


class LatentFamily:
    """A denoiser in the latent space of an `AutoencoderKL`.

    Args:
        pipeline: the live pipeline.
    """

    slot: str
    readers: tuple[str, ...]
    """The text encoders without which its pipeline cannot read prompts."""
    text_slots: tuple[str, ...]
    resolution: int
    unit: int

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.factor: int = pipeline.vae_scale_factor
        self.dtype = cast("torch.dtype", self.denoiser.dtype)  # before shifts, which are float32, become its parameters
        slots = (name for name in sorted(pipeline.components) if name.startswith("text_encoder"))
        self.text_slots = tuple(name for name in slots if getattr(pipeline, name) is not None)

    @property
    def denoiser(self) -> nn.Module:
        """The component that predicts."""
        return cast("nn.Module", getattr(self.pipeline, self.slot))

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders are; raises TrainError if the pipeline lacks one that it reads prompts with."""
        if lacking := [name for name in self.readers if name not in self.text_slots]:
            raise TrainError(
                f"{type(self.pipeline).__name__}: has no {lacking[0] if self.text_slots else 'text encoder'} to read "
                "prompts with",
                fix="load the pipeline with its text encoders",
            )
        return cast("torch.device", getattr(self.pipeline, self.text_slots[0]).device)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of one picture of this size in pixels."""
        return (self.pipeline.vae.config.latent_channels, height // self.factor, width // self.factor)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation (batch, 2, channels, height, width) of pictures' latents, in float32.

        Args:
            images: (batch, 3, height, width) in [−1, 1].
        """
        vae = self.pipeline.vae
        if half := vae.dtype == torch.float16:
            vae.to(dtype=torch.float32)  # several autoencoders overflow in float16
        try:
            posterior = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
            return torch.stack([posterior.mean, posterior.std], dim=1).float()
        finally:
            if half:
                vae.to(dtype=torch.float16)

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) in the denoiser's scale, drawn with standard normal noise."""
        config = self.pipeline.vae.config
        mean, std = moments.unbind(1)
        latents = mean + std * noise.to(mean)
        return cast("Tensor", (latents - (config.shift_factor or 0.0)) * config.scaling_factor)

    def on_denoiser(self, tensor: Tensor, noised: Tensor) -> Tensor:
        """Return a tensor on the device of the noised latents, in the denoiser's dtype."""
        return tensor.to(noised.device, self.dtype)


class FlowMatching(LatentFamily):
    """A transformer that predicts the velocity ε − z_0 on the straight path z_t = (1 − σ_t) z_0 + σ_t ε.

    Timesteps are σ_t times the number of training timesteps, with the shift of the base's scheduler in them.

    Args:
        pipeline: the live pipeline.
    """

    slot = "transformer"
    density: str
    """The weighting scheme of `compute_density_for_timestep_sampling`."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return one timestep (), as diffusers' training examples of the family draw it."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        drawn = compute_density_for_timestep_sampling(self.density, 1, 0.0, 1.0, generator=generator)
        steps: int = self.scheduler.config.num_train_timesteps
        index = (drawn[0] * steps).long().clamp(max=steps - 1)  # u may round to 1
        return cast("Tensor", self.scheduler.timesteps[index])

    def sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return σ_t (batch, 1, 1, 1) of timesteps, on the device and in the dtype of another tensor."""
        steps: int = self.scheduler.config.num_train_timesteps
        return (timesteps.to(like) / steps).view(-1, 1, 1, 1)

    def loss_weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
        """Return ones (batch,).

        Raises:
            TrainError: min-SNR weighting was asked for.
        """
        if snr_gamma is not None:
            raise TrainError(
                f"{type(self.pipeline).__name__}: min-SNR weighting is defined for diffusion, not for flow matching",
                fix="leave out snr_gamma",
            )
        return torch.ones(timesteps.shape, device=timesteps.device)
