"""Draw the batch of every step: pictures, noise and timesteps, from hash(seed, step, sample)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from svdiff_train.families import Conditioning, Family

from . import Cut, draw_cut, draw_pictures, seeded_random
from .buckets import Size
from .cut_mix import Mix
from .image_sets import Pictures


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
        mixes: of each of the subject's samples, what it shows if it is mixed; empty if nothing is mixed.
        told: what the denoiser is told about the prompts, where that is known; None to ask.
        seen: what it is told about what belongs to each picture beside it.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: tuple[str, ...]
    sizes: Tensor
    subjects: int
    mixes: tuple[Mix | None, ...] = ()
    told: Conditioning | None = None
    seen: Conditioning = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """A picture as it is kept: its moments, its sizes, and what the denoiser is told about what is beside it."""

    moments: Tensor
    sizes: Tensor
    seen: Conditioning


@dataclass(frozen=True)
class Drawn:
    """One sample: its picture's moments (2, channels, height, width), and what chance gave it."""

    moments: Tensor
    posterior: Tensor
    noise: Tensor
    timestep: Tensor
    sizes: Tensor
    prompt: str
    seen: Conditioning


class Batches:
    """Draws batches. What is drawn depends on the seed, the step and the sample's number in the whole batch only.

    Args:
        family: of the model.
        sets: the subject's pictures; then the class's, if they take part.
        seed: of all draws.
        crop: whether pictures are cut anywhere; at the centre otherwise.
        flip: whether half of the pictures are mirrored.
    """

    def __init__(self, family: Family, sets: Sequence[Pictures], *, seed: int, crop: bool, flip: bool) -> None:
        self.family, self.sets, self.seed, self.crop, self.flip = family, list(sets), seed, crop, flip
        self._known: dict[tuple[Pictures, int, Size, Cut], Encoded] = {}

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """Return the batch of these samples of a step; all pictures of a step have one size.

        Of the subject, only pictures of that size take part; those of the class are cut to it.
        """
        subjects, *others = self.sets
        chosen = draw_pictures(subjects.sizes, self.seed, step, samples, "picture 0")
        size = subjects.sizes[chosen[0]]
        drawn = [
            self._draw(0, subjects, index, size, step, sample) for index, sample in zip(chosen, samples, strict=True)
        ]
        for kind, pictures in enumerate(others, 1):
            drawn += [self._draw_any(kind, pictures, size, step, sample) for sample in samples]
        return self._stacked(drawn, len(samples))

    def prompts(self) -> list[str]:
        """Return all that samples which are not mixed are described by, each once."""
        found = (pictures.prompt(index) for pictures in self._sets() for index in range(len(pictures.sizes)))
        return list(dict.fromkeys(found))

    def encode_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Encode all pictures that samples may show, where none is cut at random or mixed.

        Args:
            progress: called with pictures done and in all.
        """
        cuts = [Cut(flipped=flipped) for flipped in ((False, True) if self.flip else (False,))]
        wanted = [(*shown, cut) for shown in self._shown() for cut in cuts]
        for number, (pictures, index, size, cut) in enumerate(wanted, 1):
            self._encoded(pictures, index, size, cut)
            if progress is not None:
                progress(number, len(wanted))

    def _sets(self) -> Iterator[Pictures]:
        yield from self.sets

    def _shown(self) -> Iterator[tuple[Pictures, int, Size]]:
        """Yield every picture with every size that a sample may show it at."""
        subjects, *others = self.sets
        yield from ((subjects, index, size) for index, size in enumerate(subjects.sizes))
        sizes = dict.fromkeys(subjects.sizes)
        for pictures in others:
            yield from ((pictures, index, size) for index in range(len(pictures.sizes)) for size in sizes)

    def _stacked(self, drawn: Sequence[Drawn], subjects: int, mixes: tuple[Mix | None, ...] = ()) -> Batch:
        """Return samples as a batch, the subject's first."""
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
            subjects=subjects,
            mixes=mixes,
            seen=self.family.join([one.seen for one in drawn]) if drawn[0].seen else {},
        )

    def _draw_any(self, kind: int, pictures: Pictures, size: Size, step: int, sample: int) -> Drawn:
        """Return a sample of any of the pictures, cut to a size."""
        index = seeded_random.integer(len(pictures.sizes), self.seed, step, sample, f"picture {kind}")
        return self._draw(kind, pictures, index, size, step, sample)

    def _draw(self, kind: int, pictures: Pictures, index: int, size: Size, step: int, sample: int) -> Drawn:
        cut = draw_cut(self.seed, step, sample, crop=self.crop, flip=self.flip, purpose=f"cut {kind}")
        return self._noised(kind, self._encoded(pictures, index, size, cut), pictures.prompt(index), step, sample)

    def _noised(self, kind: int, known: Encoded, prompt: str, step: int, sample: int) -> Drawn:
        """Return a sample with what chance gives it."""
        at, shape = (self.seed, step, sample), tuple(known.moments.shape[1:])
        return Drawn(
            moments=known.moments,
            posterior=seeded_random.noise(shape, *at, f"posterior {kind}"),
            noise=seeded_random.noise(shape, *at, f"noise {kind}"),
            timestep=self.family.draw_timestep(seeded_random.generator(*at, f"timestep {kind}")),
            sizes=known.sizes,
            prompt=prompt,
            seen=known.seen,
        )

    def _encoded(self, pictures: Pictures, index: int, size: Size, cut: Cut) -> Encoded:
        """Return a picture's moments (2, channels, …), sizes (6,) and what is seen beside it, on the CPU.

        Without random cuts there are at most two of each picture, and each is encoded once.
        """
        key = (pictures, index, size, cut)
        if key in self._known:
            return self._known[key]
        loaded = pictures.open(index, size, cut)
        pixels = loaded.pixels[None]
        found = Encoded(self.family.encode_images(pixels)[0].cpu(), torch.tensor(loaded.sizes), {})
        if loaded.companion is not None:
            with torch.no_grad():
                told = self.family.see(pixels, loaded.companion[None], pictures.prompt(index))
            found = replace(found, seen={key: value.cpu() for key, value in told.items()})
        if not self.crop:
            self._known[key] = found
        return found


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
        return self.family.join([self._known[prompt] for prompt in prompts])
