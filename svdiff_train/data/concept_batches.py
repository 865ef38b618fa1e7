"""Batches of several concepts: of each sample one that chance picks, or two that are cut and mixed (section 3.3)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from svdiff_train.families import Family
from svdiff_train.settings.concept import Concept

from . import draw_cut, seeded_random
from .batches import Batch, Batches, Drawn, Encoded
from .buckets import Size
from .cut_mix import Mix, Mixing, compose, half
from .image_sets import Pictures

REMEMBERED: Final = 1000
"""Mixed pictures of concepts whose moments are kept, so that they are not encoded again; of classes there are many."""


class ConceptBatches(Batches):
    """Draws batches of several concepts, each of them equally likely in every sample.

    All samples of a step have one size, that of the bucket which a picture of one of the concepts, drawn for the step,
    belongs to. A concept that has pictures in that bucket is drawn from them; those of a concept that has none are cut
    to it. A mixed sample is two pictures, whatever their sizes: each is scaled to cover its half, and its centre is
    taken whatever `crop` says; with `flip`, each is mirrored or not by itself. Its class's sample mixes pictures of the
    same two classes in the same way.

    Args:
        family: of the model.
        concepts: what is learned.
        sets: of each concept its pictures; then, of all or none, those of its class.
        mixing: how often and how concepts are mixed.
        seed: of all draws.
        crop: whether pictures that are not mixed are cut anywhere; at the centre otherwise.
        flip: whether half of the pictures are mirrored.
    """

    def __init__(
        self,
        family: Family,
        concepts: Sequence[Concept],
        sets: Sequence[Sequence[Pictures]],
        mixing: Mixing,
        *,
        seed: int,
        crop: bool,
        flip: bool,
    ) -> None:
        super().__init__(family, [], seed=seed, crop=crop, flip=flip)
        self.kinds: list[tuple[Pictures, ...]] = [*zip(*sets, strict=True)]
        self.mixing = mixing
        self.phrases = ([concept.noun for concept in concepts], [concept.class_noun for concept in concepts])
        self._mixed: dict[tuple[Hashable, ...], Tensor] = {}

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """Return the batch of these samples of a step."""
        size = self._size(step)
        shown = [self.mixing.draw(len(self.kinds[0]), self.seed, step, sample) for sample in samples]
        drawn = [
            self._mix(kind, shows, size, step, sample)
            if isinstance(shows, Mix)
            else self._one(kind, shows, size, step, sample)
            for kind in range(len(self.kinds))
            for shows, sample in zip(shown, samples, strict=True)
        ]
        return self._stacked(drawn, len(samples), tuple(shows if isinstance(shows, Mix) else None for shows in shown))

    def _sets(self) -> Iterator[Pictures]:
        yield from (pictures for kind in self.kinds for pictures in kind)

    def _shown(self) -> Iterator[tuple[Pictures, int, Size]]:
        """Yield every picture with every size that a sample which is not mixed may show it at."""
        sizes = dict.fromkeys(size for pictures in self.kinds[0] for size in pictures.sizes)
        for kind, sets in enumerate(self.kinds):
            for pictures in sets:
                for size in sizes:
                    inside = kind == 0 and size in pictures.sizes
                    at = (index for index, own in enumerate(pictures.sizes) if own == size or not inside)
                    yield from ((pictures, index, size) for index in at)

    def _size(self, step: int) -> Size:
        """Return height and width of all pictures of a step."""
        concept = seeded_random.integer(len(self.kinds[0]), self.seed, step, 0, "concept of the bucket")
        sizes = self.kinds[0][concept].sizes
        return sizes[seeded_random.integer(len(sizes), self.seed, step, 0, "picture 0: bucket")]

    def _one(self, kind: int, concept: int, size: Size, step: int, sample: int) -> Drawn:
        """Return a sample of one concept, or of its class."""
        pictures = self.kinds[kind][concept]
        inside = [index for index, own in enumerate(pictures.sizes) if own == size]
        if kind > 0 or not inside:
            return self._draw_any(kind, pictures, size, step, sample)
        index = inside[seeded_random.integer(len(inside), self.seed, step, sample, f"picture {kind}")]
        return self._draw(kind, pictures, index, size, step, sample)

    def _mix(self, kind: int, mix: Mix, size: Size, step: int, sample: int) -> Drawn:
        """Return a sample that shows two concepts, or their classes."""
        at = (self.seed, step, sample)
        parts = [(self.kinds[kind][mix.first], "first"), (self.kinds[kind][mix.second], "second")]
        indices = [
            seeded_random.integer(len(pictures.sizes), *at, f"{part} picture {kind}") for pictures, part in parts
        ]
        cuts = [draw_cut(*at, crop=False, flip=self.flip, purpose=f"{part} cut {kind}") for _, part in parts]
        key = (kind, mix.first, mix.second, mix.beside, size, *indices, *cuts)
        moments = self._mixed.get(key)
        if moments is None:
            part = half(size, beside=mix.beside)
            opened = [
                pictures.open(index, part, cut).pixels
                for (pictures, _), index, cut in zip(parts, indices, cuts, strict=True)
            ]
            moments = self.family.encode_images(compose(*opened, beside=mix.beside)[None])[0].cpu()
            if kind == 0 and len(self._mixed) < REMEMBERED:
                self._mixed[key] = moments
        prompt = self.mixing.prompt(mix, self.phrases[kind])
        known = Encoded(moments, torch.tensor((*size, 0, 0, *size)), {})
        return self._noised(kind, known, prompt, step, sample)
