"""Define the protocol of a model family: what training must know about one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Conditioning: TypeAlias = Mapping[str, Tensor]
"""What the denoiser is told about prompts, by the family's own names; every tensor is (batch, …)."""


class Family(Protocol):
    """What the training loop asks of a model family.

    Attributes:
        pipeline: the live pipeline.
        dtype: of the denoiser's weights.
        slot: the component that is trained unless something else is asked for, "unet" or "transformer".
        text_slots: the components that read prompts.
        resolution: side in pixels of the pictures the model was made for.
        unit: sides of pictures are multiples of it.
    """

    pipeline: Any
    dtype: torch.dtype
    slot: str
    text_slots: tuple[str, ...]
    resolution: int
    unit: int

    @property
    def denoiser(self) -> nn.Module:
        """The component that predicts."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of one picture of this size in pixels."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation (batch, 2, channels, height, width) of the latents of pictures.

        Args:
            images: (batch, 3, height, width) in [−1, 1].
        """

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) in the denoiser's scale, drawn with standard normal noise."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts; gradients reach the text encoders if they are asked for."""

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return one timestep (), drawn as the family's own training draws it."""

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noised latents z_t and the target of the prediction, both in the latents' shape."""

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's prediction in the latents' shape.

        Args:
            denoiser: the component, possibly wrapped or compiled.
            noised: z_t.
            timesteps: (batch,).
            conditioning: of the prompts; the key `sizes` may hold what is known of each picture, (batch, 6): its
                height and width before it was cut, the upper and left edge of the cut, its height and width now.
        """

    def loss_weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
        """Return the weight (batch,) of each sample's squared error, ones unless a weighting is asked for.

        Args:
            timesteps: (batch,).
            snr_gamma: γ of min-SNR weighting (Hang et al. 2023, Eq. 6); None for no such weighting.

        Raises:
            TrainError: the family knows no signal-to-noise ratio.
        """
