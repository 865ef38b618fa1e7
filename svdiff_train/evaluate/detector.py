"""Detect which of several subjects each part of a picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdiff_delta.errors import InputError

from .article import article
from .clip import Clip
from .region import REGIONS, Region, crop
from .vision import Vectors, Vision

SIDES: Final = (REGIONS["left"], REGIONS["right"])


@dataclass(frozen=True)
class Detection:
    """What was found in pictures.

    Attributes:
        regions: names of the regions.
        names: the candidates.
        scores: (pictures, regions, candidates), cosines, float32.
    """

    regions: tuple[str, ...]
    names: tuple[str, ...]
    scores: Vectors

    @property
    def labels(self) -> NDArray[np.str_]:
        """The candidate that scores highest, (pictures, regions)."""
        found: NDArray[np.str_] = np.asarray(self.names)[self.scores.argmax(-1)]
        return found

    def appear(self, asked: Sequence[str], *, any_order: bool = False) -> NDArray[np.bool_]:
        """Return for each picture whether every region shows what it should, (pictures,).

        Args:
            asked: what each region should show.
            any_order: whether subjects may have changed places.

        Raises:
            InputError: as `crossed`.
        """
        self._columns(asked)
        labels, wanted = self.labels, np.asarray(asked)
        if any_order:
            labels, wanted = np.sort(labels, axis=1), np.sort(wanted)
        found: NDArray[np.bool_] = (labels == wanted).all(1)
        return found

    def crossed(self, asked: Sequence[str], *, any_order: bool = False) -> NDArray[np.bool_]:
        """Return for each region whether it is nearer to another asked subject than to its own, (pictures, regions).

        Args:
            asked: what each region should show.
            any_order: whether subjects may have changed places: each picture is judged by the order that suits it best.

        Raises:
            InputError: a name is not among the candidates, or there is not one for each region.
        """
        columns = self._columns(asked)
        scores = self.scores[:, :, columns]  # (pictures, regions, asked)
        regions = np.arange(len(columns))
        orders = np.asarray([*permutations(regions)] if any_order else [regions])
        totals = np.stack([scores[:, regions, order].sum(1) for order in orders])
        own = orders[totals.argmax(0)]  # (pictures, regions): which asked one each region should show
        score = np.take_along_axis(scores, own[:, :, None], 2)
        other = np.asarray(columns)[None, None] != np.asarray(columns)[own][:, :, None]
        found: NDArray[np.bool_] = ((scores > score) & other).any(2)
        return found

    def _columns(self, asked: Sequence[str]) -> list[int]:
        if len(asked) != len(self.regions):
            raise InputError(f"{len(self.regions)} regions have {len(asked)} subjects", fix="name one for each")
        for name in asked:
            if name not in self.names:
                raise InputError(f"{name}: is not among the candidates {', '.join(self.names)}", fix="add it to them")
        return [self.names.index(name) for name in asked]


class Detector:
    """Candidates that parts of pictures are compared with.

    Args:
        vision: what turns pictures into vectors.
        names: of the candidates.
        vectors: of them, (candidates, width), unit vectors.

    Raises:
        InputError: there are fewer than two, or one stands there twice.
    """

    def __init__(self, vision: Vision, names: Sequence[str], vectors: Vectors) -> None:
        if len(set(names)) != len(names):
            raise InputError(f"a candidate stands there twice: {', '.join(names)}", fix="name each once")
        if len(names) < 2:
            raise InputError(
                f"there is one candidate ({', '.join(names)}), which every region would show", fix="name another one"
            )
        self.names = tuple(names)
        self._vision, self._vectors = vision, vectors

    @classmethod
    def from_names(cls, clip: Clip, names: Sequence[str], *, prompt: str = "a photo of {}") -> Self:
        """Return a detector that names subjects (zero-shot): the nearest of "a photo of a dog", "a photo of an owl".

        Args:
            clip: compares them.
            names: of the candidates, such as "dog".
            prompt: where {} stands for the name with its article.
        """
        texts = [prompt.format(article(name, name)) for name in names]
        return cls(clip, names, clip.text_features(texts) if names else np.empty((0, 0), np.float32))

    @classmethod
    def from_pictures(cls, vision: Vision, concepts: Mapping[str, Sequence[Image.Image]]) -> Self:
        """Return a detector that tells concepts apart by pictures of them: the nearest mean vector.

        Args:
            vision: a `Clip` or `Dino`.
            concepts: pictures by name.
        """
        means = [vision.image_features(images).astype(np.float64).mean(0) for images in concepts.values()]
        vectors = [(mean / np.linalg.norm(mean)).astype(np.float32) for mean in means]
        return cls(vision, [*concepts], np.stack(vectors) if vectors else np.empty((0, 0), np.float32))

    def regions(self, images: Sequence[Image.Image], regions: Sequence[Region] = SIDES) -> Detection:
        """Return the cosines of parts of pictures with all candidates.

        Args:
            images: of any sizes.
            regions: where to look; the left and the right side by themselves.

        Raises:
            InputError: there are no pictures or no regions.
        """
        if not regions:
            raise InputError("there are no regions to look at", fix="name at least one")
        found = [self._features(images, region) @ self._vectors.T for region in regions]
        return Detection(tuple(region.name for region in regions), self.names, np.stack(found, 1))

    def _features(self, images: Sequence[Image.Image], region: Region) -> Vectors:
        if region.whole:
            return self._vision.image_features(images)
        size = self._vision.size
        return self._vision.image_features([crop(image, region, size) for image in images], fitted=True)
