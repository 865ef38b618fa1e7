"""Model families: what training must know about a pipeline, one small file each."""

from __future__ import annotations

from typing import Any, Final, Protocol

from torch import Tensor, nn

from svdiff_delta.errors import TrainError

from .stable_diffusion import StableDiffusion


class Family(Protocol):
    """What the training loop asks of a model family."""

    denoiser: nn.Module
    resolution: int
    steps: int

    def encode_images(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return latents (batch, …) of pictures (batch, 3, height, width) in [−1, 1], sampled with `noise`."""

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Return the conditioning (batch, …) of prompts."""

    def latent_shape(self, resolution: int) -> tuple[int, ...]:
        """Return the shape of one picture's latents."""

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noised latents z_t and the target that the denoiser must predict."""

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """Return the denoiser's prediction."""


FAMILIES: Final[dict[str, type[StableDiffusion]]] = {"StableDiffusionPipeline": StableDiffusion}
"""Family by the class name of the pipeline."""


def family_of(pipeline: Any) -> Family:
    """Return the family of a live pipeline.

    Raises:
        TrainError: no family knows its class.
    """
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise TrainError(f"{name}: no model family knows this pipeline", fix=f"known are {', '.join(FAMILIES)}")
    return FAMILIES[name](pipeline)
