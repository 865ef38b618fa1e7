"""One training of the report, as a value: what the cache of trainings is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

from svdiff_delta._util.json import canonical_json
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import MethodName, TrainConfig

from .subjects import SCENE, SUBJECTS

STEPS: Final = 200
"""Steps of a training, for every method: the paper took the better of 500 and 1000 by eye, here rates are searched."""

BATCH: Final = 2
CLASS_IMAGES: Final = 16

RATE_1D: Final = 0.2
"""The learning rate of norm weights, as a part of that of singular values."""

PRIOR: Final = 1.0
"""λ in Eq. 3 where there are pictures of a class, as in the paper; a single picture is learned with λ = 0."""


@dataclass(frozen=True)
class Unmixing:
    """The unmix regularization of a training.

    Attributes:
        weight: in the loss; 0 leaves it out.
        maps: what of each map is squared, as `unmix_maps` of the trainer has it.
        sides: of the maps it looks at; none stands for all.
    """

    weight: float = 0.0
    maps: str = "attention"
    sides: tuple[int, ...] = ()


NONE: Final = Unmixing()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train.

    Attributes:
        rate: the learning rate.
        method: how.
        subjects: names of one subject, or of several that are learned together.
        scene: a picture to edit, in place of subjects.
        seed: of all draws.
        noun: a class word in place of the subjects' own.
        token: a rare token in place of the subject's own.
        mix: the probability of Cut-Mix-Unmix.
        unmix: the unmix regularization.
        selectors: what is trained; None takes what the method trains by itself.
        rank: train the largest singular values only.
        prior: λ in Eq. 3.
        steps: how many.
    """

    rate: float
    method: MethodName = "svdiff"
    subjects: tuple[str, ...] = ()
    scene: str | None = None
    seed: int = 0
    noun: str | None = None
    token: str | None = None
    mix: float = 0.0
    unmix: Unmixing = NONE
    selectors: tuple[str, ...] | None = None
    rank: int | None = None
    prior: float = PRIOR
    steps: int = STEPS

    def key(self) -> str:
        """Return a name that tells this training from every other."""
        return _key(self)

    @property
    def rate_1d(self) -> float:
        """The learning rate of norm weights."""
        return round(self.rate * RATE_1D, 9)

    def config(self) -> TrainConfig:
        """Return the settings of the run: a picture to edit has no class."""
        rest: dict[str, Any] = {
            "method": self.method,
            "steps": self.steps,
            "batch_size": BATCH,
            "learning_rate": self.rate,
            "learning_rate_1d": self.rate_1d,
            "prior_weight": self.prior,
            "seed": self.seed,
            "selectors": self.selectors,
            "train_rank": self.rank,
            "class_images": CLASS_IMAGES,
        }
        if self.scene is not None:
            return TrainConfig(prompt=SCENE[self.scene].prompt, **rest)
        concepts = tuple(self._concept(name) for name in self.subjects)
        if len(concepts) > 1:
            return TrainConfig(concepts=concepts, mix_probability=self.mix, **self._unmixing(), **rest)
        one = concepts[0]
        return TrainConfig(prompt=one.prompt, class_prompt=one.class_prompt, token=one.token, **rest)

    def _unmixing(self) -> dict[str, Any]:
        if not self.unmix.weight:
            return {}
        kept: dict[str, Any] = {"unmix_weight": self.unmix.weight, "unmix_maps": self.unmix.maps}
        return kept | ({"unmix_resolutions": self.unmix.sides} if self.unmix.sides else {})

    def _concept(self, name: str) -> Concept:
        subject = SUBJECTS[name]
        return Concept(
            images=subject.folder,
            prompt=f"a photo of {subject.phrase(self.noun, self.token)}",
            class_prompt=f"a photo of a {self.noun or subject.noun}",
            token=self.token or subject.token,
        )


@cache
def _key(recipe: Recipe) -> str:
    """Return a digest of all that a training depends on, but for the base."""
    plain: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()
    }
    plain["unmix"]["sides"] = list(recipe.unmix.sides)
    plain |= {"rate_1d": recipe.rate_1d, "batch": BATCH, "class_images": CLASS_IMAGES}
    return hashlib.sha256(canonical_json(plain)).hexdigest()[:16]
