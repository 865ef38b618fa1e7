"""One training of the report, as a value: what the cache of trainings is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from svdiff_delta._util.json import canonical_json
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import MethodName, TrainConfig

from .subjects import SCENE, SUBJECTS

STEPS: Final = 200
"""Steps of a training; a result is kept after half of them too, and the better one is measured."""

BATCH: Final = 2
CLASS_IMAGES: Final = 16

RATES: Final[Mapping[MethodName, float]] = {"svdiff": 2e-2, "full": 1e-4, "lora": 2e-3, "kv": 5e-4}
"""Learning rates on the embedded base: of those in the search, the lowest with which each method learned a subject."""

RATE_1D: Final = 0.2
"""The learning rate of norm weights, as a part of that of singular values."""

PRIOR: Final = 0.0
"""λ in Eq. 3. The text encoder of the base that these were searched on, the first embedded one, never saw a rare token
and all but ignores it, so a subject and its class are one prompt to the UNet: with λ = 1, the paper's, SVDiff does not
learn the search's subjects.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train.

    Attributes:
        method: how.
        subjects: names of one subject, or of several that are learned together.
        scene: a picture to edit, in place of subjects.
        seed: of all draws.
        noun: a class word in place of the subjects' own.
        mix: the probability of Cut-Mix-Unmix.
        unmix: the weight of the unmix regularization.
        selectors: what is trained; None takes what the method trains by itself.
        rank: train the largest singular values only.
        faster: factor on the learning rate.
        prior: λ in Eq. 3.
        steps: how many.
    """

    method: MethodName = "svdiff"
    subjects: tuple[str, ...] = ()
    scene: str | None = None
    seed: int = 0
    noun: str | None = None
    mix: float = 0.0
    unmix: float = 0.0
    selectors: tuple[str, ...] | None = None
    rank: int | None = None
    faster: float = 1.0
    prior: float = PRIOR
    steps: int = STEPS

    def key(self) -> str:
        """Return a name that tells this training from every other."""
        plain: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        del plain["faster"]  # the rate itself counts
        plain |= {
            "rate": self.rate,
            "rate_1d": round(self.rate * RATE_1D, 9),
            "batch": BATCH,
            "class_images": CLASS_IMAGES,
        }
        return hashlib.sha256(canonical_json(plain)).hexdigest()[:16]

    @property
    def rate(self) -> float:
        """The learning rate."""
        return round(RATES[self.method] * self.faster, 9)

    def config(self) -> TrainConfig:
        """Return the settings of the run: a picture to edit has no class."""
        rest: dict[str, Any] = {
            "method": self.method,
            "steps": self.steps,
            "batch_size": BATCH,
            "learning_rate": self.rate,
            "learning_rate_1d": round(self.rate * RATE_1D, 9),
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
            return TrainConfig(concepts=concepts, mix_probability=self.mix, unmix_weight=self.unmix or None, **rest)
        one = concepts[0]
        return TrainConfig(prompt=one.prompt, class_prompt=one.class_prompt, token=one.token, **rest)

    def _concept(self, name: str) -> Concept:
        subject = SUBJECTS[name]
        return Concept(
            images=subject.folder,
            prompt=f"a photo of {subject.phrase(self.noun)}",
            class_prompt=f"a photo of a {self.noun or subject.noun}",
            token=subject.token,
        )
