"""Autoencoders by class: how pictures and clips become latents, and how those are normalized for the denoiser.

No recording of a pipeline can tell this: its first latents are noise. Each class states its pipeline's own formula, the
inverse of what the pipeline does before it decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor

from svdiff_delta.errors import TrainError


class Autoencoder:
    """An `AutoencoderKL`: latents are (z − shift_factor) · scaling_factor.

    It is looked up in the pipeline whenever something is encoded: its weights may have been let go, and come back as
    another model. What latents are normalized with stays.

    Args:
        pipeline: the live pipeline.

    Attributes:
        spatial: pixels of a latent's side.
        temporal: frames of a latent, after the first; 1 where it knows no time.
        channels: of latents.
        video: whether it takes (batch, 3, frames, height, width).
    """

    video = False
    temporal = 1

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.channels: int
        self.spatial: int
        self.learn(pipeline.vae)

    def learn(self, vae: Any) -> None:
        """Note the sizes of latents, and what they are normalized with."""
        self.channels = vae.config.latent_channels
        self.spatial = 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def vae(self) -> Any:
        """The live autoencoder."""
        return self._pipeline.vae

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of latents, each (batch, channels, …), in float32.

        Args:
            pixels: (batch, 3, height, width), or with frames before the height, in [−1, 1].
        """
        vae, flat = self.vae, self.video and pixels.dim() == 4
        if half := vae.dtype == torch.float16:
            vae.to(dtype=torch.float32)  # several autoencoders overflow in float16
        try:
            given = pixels.unsqueeze(2) if flat else pixels
            found = vae.encode(given.to(vae.device, vae.dtype))
        finally:
            if half:
                vae.to(dtype=torch.float16)
        mean, std = _moments(found)
        return (mean.squeeze(2), std.squeeze(2)) if flat else (mean, std)

    def normalize(self, latents: Tensor) -> Tensor:
        """Return latents in the denoiser's scale, in their own shape."""
        config = self.vae.config
        return cast("Tensor", (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor)


def _moments(found: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of what an autoencoder gives; some give latents without any spread."""
    posterior = getattr(found, "latent_dist", None)
    if posterior is None:
        latents: Tensor = found.latent.float()
        return latents, torch.zeros_like(latents)
    return posterior.mean.float(), posterior.std.float()


class DeepCompression(Autoencoder):
    """An `AutoencoderDC`: latents without spread, times scaling_factor."""

    def learn(self, vae: Any) -> None:
        """Note the sizes of latents."""
        self.channels = vae.config.latent_channels
        self.spatial = 2 ** (len(vae.config.encoder_block_out_channels) - 1)


class Patched(Autoencoder):
    """An `AutoencoderKLFlux2`: patches of 2 × 2 latents as channels, (z − running mean) / running deviation."""

    def learn(self, vae: Any) -> None:
        """Note the sizes of patches, and their running mean and variance."""
        super().learn(vae)
        self.channels, self.spatial = 4 * self.channels, 2 * self.spatial
        self._mean, self._variance = (value.detach().clone() for value in (vae.bn.running_mean, vae.bn.running_var))

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of patches of latents, each (batch, 4 · channels, height, width)."""
        mean, std = super().encode(pixels)
        # Channel 4c + 2y + x is latent c at (y, x) of its patch, as pixel_unshuffle has it.
        return torch.nn.functional.pixel_unshuffle(mean, 2), torch.nn.functional.pixel_unshuffle(std, 2)

    def normalize(self, latents: Tensor) -> Tensor:
        """Return patches of latents normalized as the autoencoder's own batch norm would."""
        mean, variance = (value.view(1, -1, 1, 1).to(latents) for value in (self._mean, self._variance))
        return cast("Tensor", (latents - mean) / torch.sqrt(variance + self.vae.config.batch_norm_eps))


class Standardized(Autoencoder):
    """An `AutoencoderKLQwenImage` or `AutoencoderKLWan`: latents are (z − mean) / deviation of each channel."""

    video = True

    def learn(self, vae: Any) -> None:
        """Note the sizes of latents."""
        self.channels = vae.config.z_dim
        self.spatial = int(getattr(vae, "spatial_compression_ratio", 8))
        self.temporal = int(getattr(vae.config, "scale_factor_temporal", None) or 2 ** sum(vae.temperal_downsample))

    def normalize(self, latents: Tensor) -> Tensor:
        """Return latents with each channel's mean and deviation taken out."""
        mean, std = self._spread(latents)
        return (latents - mean) / std

    def _spread(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config, shape = self.vae.config, (1, -1, *(1 for _ in latents.shape[2:]))
        return tuple(  # type: ignore[return-value]
            torch.as_tensor(value, dtype=torch.float64).view(shape).to(latents)
            for value in (config.latents_mean, config.latents_std)
        )


class LtxVideo(Autoencoder):
    """An `AutoencoderKLLTXVideo`: latents are (z − mean) · scaling_factor / deviation of each channel."""

    video = True

    def learn(self, vae: Any) -> None:
        """Note the sizes of latents, and the mean and deviation of each channel."""
        self.channels = vae.config.latent_channels
        self.spatial = int(vae.spatial_compression_ratio)
        self.temporal = int(vae.temporal_compression_ratio)
        self._mean, self._std = (value.detach().clone() for value in (vae.latents_mean, vae.latents_std))

    def normalize(self, latents: Tensor) -> Tensor:
        """Return latents with each channel's mean and deviation taken out, times the scaling factor."""
        shape = (1, -1, *(1 for _ in latents.shape[2:]))
        mean, std = (value.view(shape).to(latents) for value in (self._mean, self._std))
        return cast("Tensor", (latents - mean) * self.vae.config.scaling_factor / std)


AUTOENCODERS: Final[dict[str, Callable[[Any], Autoencoder]]] = {
    "AutoencoderKL": Autoencoder,
    "AutoencoderDC": DeepCompression,
    "AutoencoderKLFlux2": Patched,
    "AutoencoderKLQwenImage": Standardized,
    "AutoencoderKLWan": Standardized,
    "AutoencoderKLLTXVideo": LtxVideo,
}
"""What is known of autoencoders, by class name."""


def autoencoder_of(pipeline: Any) -> Autoencoder:
    """Return what is known of a pipeline's autoencoder.

    Raises:
        TrainError: there is none, or nothing is known of its class.
    """
    vae, name = getattr(pipeline, "vae", None), type(pipeline).__name__
    if vae is None:
        raise TrainError(f"{name}: has no autoencoder", fix="load the pipeline with its vae")
    kind = type(vae).__name__
    if kind not in AUTOENCODERS:
        raise TrainError(
            f"{name}: nothing says how latents of {kind} are normalized", fix=f"known are {', '.join(AUTOENCODERS)}"
        )
    return AUTOENCODERS[kind](pipeline)
