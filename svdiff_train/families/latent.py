"""Share what several families need: an autoencoder's latents, and the noise process of flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta.errors import TrainError

from .family import Conditioning


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
    companion: str | None = None

    def __init__(self, pipeline: Any) -> None:
        self.factor: int = pipeline.vae_scale_factor
        self.setup(pipeline)

    def setup(self, pipeline: Any) -> None:
        """Note what holds for every latent space: the pipeline, the denoiser's dtype and the text encoders."""
        self.pipeline = pipeline
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

    @property
    def slots(self) -> tuple[str, ...]:
        """The components that predict."""
        return (self.slot,)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
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

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return nothing: pictures stand alone."""
        del pixels, companion, prompt
        return {}

    def prepare(self) -> None:
        """Do nothing: what must be known is known."""

    def settle(self, noised: Tensor, conditioning: Conditioning) -> None:
        """Do nothing: a prediction asks the pipeline nothing."""
        del noised, conditioning

    def join(self, rows: Sequence[Conditioning]) -> Conditioning:
        """Return the conditioning of samples as that of a batch."""
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

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
    """The weighting scheme of the family's own training."""

    def setup(self, pipeline: Any) -> None:
        """Note the pipeline's schedule too, and how timesteps are drawn where nothing is said."""
        super().setup(pipeline)
        self.scheduler = flow_schedule(pipeline.scheduler)
        self.timestep_sampling = TimestepSampling(self.density)

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return one timestep (), as diffusers' training examples of the family draw it, or as the run says."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        how = self.timestep_sampling
        drawn = compute_density_for_timestep_sampling(
            how.weighting_scheme, 1, how.logit_mean, how.logit_std, how.mode_scale, generator=generator
        )
        steps: int = self.scheduler.config.num_train_timesteps
        index = (drawn[0] * steps).long().clamp(min=0, max=steps - 1)  # u may round to 1
        return cast("Tensor", self.scheduler.timesteps[index])

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t = (1 − σ_t) z_0 + σ_t ε and the target, the velocity ε − z_0."""
        sigmas, noise = self.sigmas(timesteps, latents), noise.to(latents)
        return (1.0 - sigmas) * latents + sigmas * noise, noise - latents

    def sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return σ_t (batch, 1, …) of timesteps, on the device and in the dtype of another tensor."""
        steps: int = self.scheduler.config.num_train_timesteps
        return (timesteps.to(like) / steps).view(-1, *(1 for _ in like.shape[1:]))

    def loss_weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
        """Return the weights (batch,) of the weighting scheme: ones, unless it is `sigma_sqrt` or `cosmap`.

        Raises:
            TrainError: min-SNR weighting was asked for.
        """
        if snr_gamma is not None:
            raise TrainError(
                f"{type(self.pipeline).__name__}: min-SNR weighting is defined for diffusion, not for flow matching",
                fix="leave out snr_gamma",
            )
        from diffusers.training_utils import compute_loss_weighting_for_sd3

        steps: int = self.scheduler.config.num_train_timesteps
        sigmas = timesteps.float() / steps
        return cast("Tensor", compute_loss_weighting_for_sd3(self.timestep_sampling.weighting_scheme, sigmas))


@dataclass(frozen=True)
class TimestepSampling:
    """How timesteps are drawn and losses weighted, by the names of diffusers' training scripts.

    Attributes:
        weighting_scheme: "none" draws uniformly, "logit_normal" and "mode" draw more of the middle (Esser et al. 2024,
            section 3.1); "sigma_sqrt" and "cosmap" draw uniformly and weight the loss by 1/σ² and 2/(π(1 − 2σ + 2σ²)).
        logit_mean: of logit-normal draws.
        logit_std: of logit-normal draws.
        mode_scale: of draws by mode.
    """

    weighting_scheme: str
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29

    def changed(self, **said: Any) -> TimestepSampling:
        """Return the same with what a run says."""
        return replace(self, **said)


def flow_schedule(scheduler: Any) -> Any:
    """Return the schedule that a pipeline's own scheduler is trained with, before any sampling.

    Solvers of another kind, such as UniPC for Wan and DPM-Solver for SANA, call the shift `flow_shift`.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = scheduler.config
    own = {} if "shift" in config or "flow_shift" not in config else {"shift": config["flow_shift"]}
    return FlowMatchEulerDiscreteScheduler.from_config(config, **own)
