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
        companion: the sub-folder with what belongs to each picture beside it: "conditions" for models that edit
            pictures, "masks" for those that fill in; None for all others.
    """

    pipeline: Any
    dtype: torch.dtype
    slot: str
    text_slots: tuple[str, ...]
    resolution: int
    unit: int
    companion: str | None

    @property
    def slots(self) -> tuple[str, ...]:
        """All components that predict: one, or experts that share out the timesteps."""

    @property
    def denoiser(self) -> nn.Module:
        """The component that predicts."""

    def prepare(self) -> None:
        """Learn what must be known before the first prediction, while nothing looks on.

        Raises:
            TrainError: the pipeline does not tell it.
        """

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return (channels, height, width) of the latents of one picture of this size in pixels.

        Of clips, latents have frames before the height, here and below.
        """

    def encode_images(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation (batch, 2, channels, height, width) of the latents of pictures.

        Args:
            images: (batch, 3, height, width) in [−1, 1].
        """

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) in the denoiser's scale, drawn with standard normal noise."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts; gradients reach the text encoders if they are asked for."""

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return what the denoiser is told about what belongs to a picture beside it, (1, …) each.

        Args:
            pixels: the picture, (1, 3, height, width) in [−1, 1].
            companion: of a condition as many; of a mask (1, 1, height, width), 1 where it is filled in.
            prompt: what describes the picture.
        """

    def join(self, rows: Sequence[Conditioning]) -> Conditioning:
        """Return the conditioning of samples, one row each, as that of a batch."""

    def settle(self, noised: Tensor, conditioning: Conditioning) -> None:
        """Ask the pipeline beforehand for what a prediction at this size and this length of text needs of it."""

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
