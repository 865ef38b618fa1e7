"""Score pictures one by one and on the average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdiff_delta.errors import InputError

from .alignment import ImageScorer, image_alignment, text_alignment, without_tokens
from .clip import Clip
from .detector import Detection, Detector
from .region import Region
from .statistics import Interval, mean_interval, share_interval
from .vision import Vectors


@dataclass(frozen=True)
class MetricSuite:
    """What pictures are measured by.

    Attributes:
        clip: compares them with their prompts.
        scorers: compare them with the references, by what results call the measure: "lpips", "dino", "clip".
        references: the pictures that they should look like.
        tokens: rare words that are taken out of the prompts before those are compared.
        regions: where to look for subjects.
        asked: what each region should show.
        detector: tells what it shows; only needed with regions.
    """

    clip: Clip
    scorers: Mapping[str, ImageScorer]
    references: Sequence[Image.Image]
    tokens: Sequence[str] = ()
    regions: Sequence[Region] = ()
    asked: Sequence[str] = ()
    detector: Detector | None = None

    def __post_init__(self) -> None:
        if len(self.regions) != len(self.asked) or (self.regions and self.detector is None):
            raise InputError("each region needs a name and a detector", fix="name what each region should show")
        if len({region.name for region in self.regions}) != len(self.regions):
            raise InputError("a region is named twice", fix="name what it should show once")


@dataclass(frozen=True)
class Scores:
    """The answers for one set of pictures.

    Attributes:
        label: what results call the set.
        text: cosine of each picture with its prompt, (n,).
        image: alignment of each picture with the references, (n,), by measure.
        asked: what each region should show.
        detection: what they show, if there are regions.
    """

    label: str
    text: Vectors
    image: Mapping[str, Vectors]
    asked: tuple[str, ...] = ()
    detection: Detection | None = None

    @property
    def text_mean(self) -> Interval:
        """Mean text alignment."""
        return mean_interval(self.text)

    def image_mean(self, measure: str) -> Interval:
        """Return the mean image alignment by a measure."""
        return mean_interval(self.image[measure])

    def shares(self) -> dict[str, Interval]:
        """Return how often each region shows what it should, all do, all do in any order, and features cross over."""
        if self.detection is None:
            return {}
        right: NDArray[np.bool_] = np.asarray(self.detection.labels == np.asarray(self.asked))
        found = {name: share_interval(right[:, i]) for i, name in enumerate(self.detection.regions)}
        if len(self.asked) > 1:
            any_order = self.detection.crossed(self.asked, any_order=True)
            found["all"] = share_interval(self.detection.appear(self.asked))
            found["all in any order"] = share_interval(self.detection.appear(self.asked, any_order=True))
            found["crossed over"] = share_interval(np.asarray(self.detection.crossed(self.asked).any(1)))
            found["crossed over in any order"] = share_interval(np.asarray(any_order.any(1)))
        return found

    def facts(self, pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return them for JSON.

        Args:
            pictures: what to say of each picture besides, such as its prompt and seed.
        """
        found: dict[str, Any] = {
            "label": self.label,
            "text_alignment": self.text_mean.facts(),
            "image_alignment": {name: self.image_mean(name).facts() for name in self.image},
            "pictures": [{**about, **self._of(row)} for row, about in enumerate(pictures)],
        }
        if self.detection is not None:
            found["shares"] = {name: share.facts() for name, share in self.shares().items()}
        return found

    def _of(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "text_alignment": float(self.text[row]),
            "image_alignment": {name: float(values[row]) for name, values in self.image.items()},
        }
        if self.detection is not None:
            labels = self.detection.labels[row].tolist()
            found["regions"] = dict(zip(self.detection.regions, labels, strict=True))
        return found


def score(label: str, images: Sequence[Image.Image], prompts: Sequence[str], questions: MetricSuite) -> Scores:
    """Measure a set of pictures.

    Args:
        label: what results call it.
        images: RGB, of any sizes.
        prompts: one for each.
        questions: what to measure.

    Raises:
        InputError: there are no pictures, not one prompt for each, or nothing is left of a prompt without its tokens.
    """
    texts = [without_tokens(prompt, questions.tokens) for prompt in prompts]
    if not all(texts):
        raise InputError("nothing is left of a prompt without its tokens", fix="describe more, or keep the tokens")
    detection = None
    if questions.detector is not None and questions.regions:
        detection = questions.detector.regions(images, questions.regions)
    return Scores(
        label,
        text_alignment(questions.clip, images, texts),
        {name: image_alignment(scorer, images, questions.references) for name, scorer in questions.scorers.items()},
        tuple(questions.asked),
        detection,
    )
