"""What every step sees: pictures, noise and timesteps, drawn from hash(seed, step, sample)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import draws
from .families import Conditioning, Family


class Pictures(Protocol):
    """A set of pictures that can be opened one by one."""

    def __len__(self) -> int:
        """Return how many there are."""

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width at which a picture is best trained on."""

    def prompt(self, index: int) -> str:
        """Return what describes a picture."""

    @property
    def fixed(self) -> bool:
        """Whether a picture is cut in the same way each time."""

    def open(
        self, index: int, size: tuple[int, int], *, flip: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a picture (3, height, width) in [−1, 1] and its six sizes (see `Family.predict`)."""


@dataclass(frozen=True)
class Batch:
    """One batch of one process, the subject's samples first.

    Attributes:
        latents: (batch, channels, height, width).
        noise: the same shape.
        timesteps: (batch,).
        prompts: what describes each sample.
        sizes: (batch, 6).
        subjects: how many samples are the subject's.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: tuple[str, ...]
    sizes: Tensor
    subjects: int


@dataclass(frozen=True)
class _Drawn:
    """One sample: its picture's moments (2, channels, height, width), and what chance gave it."""

    moments: Tensor
    posterior: Tensor
    noise: Tensor
    timestep: Tensor
    sizes: Tensor
    prompt: str


class Batches:
    """Draws batches. What is drawn depends on the seed, the step and the sample's number in the whole batch only.

    Args:
        family: of the model.
        sets: the subject's pictures; then the class's, if they take part.
        seed: of all draws.
        flip: whether half of the pictures are mirrored.
    """

    def __init__(self, family: Family, sets: Sequence[Pictures], *, seed: int, flip: bool) -> None:
        self.family, self.sets, self.seed, self.flip = family, list(sets), seed, flip
        self._known: dict[tuple[int, int, tuple[int, int], bool], tuple[Tensor, Tensor]] = {}

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """Return the batch of these samples of a step; all pictures of a step have one size."""
        size = self.sets[0].size(draws.integer(len(self.sets[0]), self.seed, step, 0, "size"))
        drawn = [self._draw(kind, size, step, sample) for kind in range(len(self.sets)) for sample in samples]
        device = next(self.family.denoiser.parameters()).device
        moments, posterior, noise, timesteps, sizes = (
            torch.stack([getattr(one, name) for one in drawn]).to(device)
            for name in ("moments", "posterior", "noise", "timestep", "sizes")
        )
        return Batch(
            latents=self.family.sample_latents(moments, posterior),
            noise=noise,
            timesteps=timesteps,
            prompts=tuple(one.prompt for one in drawn),
            sizes=sizes,
            subjects=len(samples),
        )

    def _draw(self, kind: int, size: tuple[int, int], step: int, sample: int) -> _Drawn:
        pictures, at = self.sets[kind], (self.seed, step, sample)
        # Of the subject, only pictures of that size; those of the class are cut to it.
        among = [index for index in range(len(pictures)) if kind or pictures.size(index) == size]
        index = among[draws.integer(len(among), *at, f"picture {kind}")]
        flip = self.flip and draws.integer(2, *at, f"flip {kind}") == 1
        key = kind, index, size, flip
        found = self._known.get(key)
        if found is None:
            picture, sizes = pictures.open(index, size, flip=flip, generator=draws.generator(*at, f"crop {kind}"))
            with torch.no_grad():
                found = self.family.encode_images(picture[None])[0].cpu(), sizes
            if pictures.fixed:
                self._known[key] = found
        moments, sizes = found
        shape = tuple(moments.shape[1:])
        return _Drawn(
            moments=moments,
            posterior=draws.noise(shape, *at, f"posterior {kind}"),
            noise=draws.noise(shape, *at, f"noise {kind}"),
            timestep=self.family.draw_timestep(draws.generator(*at, f"timestep {kind}")),
            sizes=sizes,
            prompt=pictures.prompt(index),
        )


class Texts:
    """What the denoiser is told about prompts: computed once each, unless a text encoder is trained."""

    def __init__(self, family: Family, *, trained: bool) -> None:
        self.family, self.trained = family, trained
        self._known: dict[str, Mapping[str, Tensor]] = {}

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts, (batch, …)."""
        if self.trained:
            return self.family.encode_prompts(prompts)
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                with torch.no_grad():
                    self._known[prompt] = self.family.encode_prompts([prompt])
        rows = [self._known[prompt] for prompt in prompts]
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
