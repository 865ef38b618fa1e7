"""Families of clips: latents with frames, one or two transformers that share out the timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor

from svdiff_delta.errors import TrainError

from .recorded import Recorded
from .recording import first_of

DRAWS: Final = 10_000
"""Timesteps that are drawn before it is said that none is for an expert."""


class Video(Recorded):
    """A recorded family whose latents are (batch, channels, frames, height, width).

    Attributes:
        frames: of a clip, where nothing is said.
        frame_unit: clips have a multiple of it and one frame more.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.frame_unit = self.autoencoder.temporal
        asked = inspect.signature(pipeline.__call__).parameters["num_frames"].default
        self.frames = (asked - 1) // self.frame_unit * self.frame_unit + 1

    def latent_shape(self, height: int, width: int, frames: int | None = None) -> tuple[int, ...]:
        """Return (channels, frames, height, width) of the latents of one clip of this size in pixels."""
        channels, *sides = super().latent_shape(height, width)
        return (channels, ((frames or self.frames) - 1) // self.frame_unit + 1, *sides)

    def call(self, batch: int, shape: torch.Size | tuple[int, ...]) -> dict[str, Any]:
        """Return the pipeline's arguments for latents of a shape (…, frames, height, width)."""
        return {**super().call(batch, shape), "num_frames": (shape[-3] - 1) * self.frame_unit + 1}

    def recorded_shape(self) -> tuple[int, ...]:
        """Return the shape of the latents that a pipeline is recorded with."""
        return (2, *super().recorded_shape())


class Wan(Video):
    """The family of `WanPipeline`: Wan 2.1, and 2.2 with one expert or two.

    diffusers has no training example of it; the velocity is the target, as where Wan was trained.

    Args:
        pipeline: the live pipeline.

    Attributes:
        drawn: the experts for which timesteps are drawn; all of them if none is named.
    """

    drawn: frozenset[str] = frozenset()

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return one timestep (), drawn anew until an expert sees it for which timesteps are drawn.

        Raises:
            TrainError: none of many is.
        """
        for _ in range(DRAWS):
            found = super().draw_timestep(generator)
            if not self.drawn or self.slots[self._expert(float(found))] in self.drawn:
                return found
        raise TrainError(
            f"{', '.join(sorted(self.drawn))}: none of {DRAWS:,} timesteps that were drawn is on its side of the "
            f"boundary {self.pipeline.config.boundary_ratio}",
            fix="train both experts, or set weighting_scheme to none",
        )

    def _expert(self, timestep: float) -> int:
        """Return which expert sees a timestep: the first from the pipeline's boundary on, the other less."""
        if len(self.slots) == 1:
            return 0
        return int(timestep < self.pipeline.config.boundary_ratio * self.training_steps)

    def run(self, denoiser: Any, given: Mapping[str, Any], timesteps: Tensor) -> Tensor:
        """Return the output; of two experts, the first sees samples from the pipeline's boundary on, the other less."""
        if len(self.slots) == 1:
            return super().run(denoiser, given, timesteps)
        experts = [self._expert(timestep) for timestep in timesteps.tolist()]
        rows = [(_row(given, index, len(experts)), expert) for index, expert in enumerate(experts)]
        return torch.cat([first_of(denoiser(expert=expert, **row)) for row, expert in rows])


def _row(given: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    """Return the arguments for one sample of a batch."""
    return {
        name: value[index : index + 1] if isinstance(value, Tensor) and value.dim() and len(value) == count else value
        for name, value in given.items()
    }


class Ltx(Video):
    """The family of `LTXPipeline`: patches of latents as tokens.

    diffusers has no training example of it; the velocity is the target.

    Args:
        pipeline: the live pipeline.
    """

    patch = 1
    masks = {1: 0}  # noqa: RUF012

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (batch, channels, frames, height, width) as tokens."""
        return cast("Tensor", self.pipeline._pack_latents(latents, *self._patches()))

    def unpack(self, found: Tensor, shape: torch.Size) -> Tensor:
        """Return tokens as latents of a shape."""
        frames, height, width = shape[-3:]
        side, length = self._patches()
        unpacked = self.pipeline._unpack_latents(found, frames // length, height // side, width // side, side, length)
        return cast("Tensor", unpacked).reshape(shape)

    def _patches(self) -> tuple[int, int]:
        pipeline = self.pipeline
        return pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
