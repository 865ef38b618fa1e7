"""(b) Two and three subjects (sections 3.3 and 4.2, Fig. 6), with and without Cut-Mix-Unmix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.choices import MIX, NEGATIVES, Choices
from reproduce.paper.lab import Job, Lab
from reproduce.paper.recipe import NONE, Recipe
from reproduce.paper.sight import CENTRES, SEAM, Sight, half, seam
from reproduce.paper.subjects import SUBJECTS, Subject, slug
from svdiff_train.settings.config import MethodName

Variant = Literal["plain", "mix", "unmix"]
METHODS: Final[tuple[MethodName, ...]] = ("svdiff", "full")

TEMPLATES: Final = (
    "a photo of {0} beside {1}",
    "a photo of {1} next to {0}",
    "{0} and {1} on a blue background",
    "{0} beside {1} on a purple background",
)
"""Other wordings than those of the mixed samples that are learned from."""
PICTURE_SEEDS: Final = (0, 1, 2)
PICTURES: Final = len(TEMPLATES) * len(PICTURE_SEEDS)
"""Of a pair by a training."""


def recipe(
    choices: Choices, names: tuple[str, ...], method: MethodName, variant: Variant, seed: int, **more: Any
) -> Recipe:
    """Return the training of several subjects; `more` are fields of the recipe in place of what was chosen."""
    given: dict[str, Any] = {
        "rate": round(choices.rates[method] * choices.factors[method], 9),
        "method": method,
        "subjects": names,
        "seed": seed,
        "mix": 0.0 if variant == "plain" else MIX,
        "unmix": choices.unmix if variant == "unmix" else NONE,
        "steps": choices.pair_steps,
    }
    return Recipe(**(given | more))


def cell(choices: Choices, names: tuple[str, ...], method: MethodName, variant: Variant, seed: int) -> Cell:
    """Return a cell of (b)."""
    name = f"{slug(*names)}-{method}-{variant}-{seed}"
    made = recipe(choices, names, method, variant, seed)
    return pair_cell("b", name, made, negative=NEGATIVES[choices.negative], shown=seed == 0)


def pair_cell(letter: str, name: str, made: Recipe, *, negative: str = "", shown: bool) -> Cell:
    """Return a cell that measures several subjects; with mixed samples, with a negative prompt too if one is given."""
    avoided = negative if made.mix else ""
    return Cell(letter, name, partial(_measure, made, avoided), (made,), shown, about=avoided)


def _measure(made: Recipe, avoided: str, lab: Lab, sight: Sight) -> Measured:
    trained = lab.trained(made)
    subjects = [SUBJECTS[name] for name in made.subjects]
    duos = list(combinations(subjects, 2))
    numbers: dict[str, Any] = {"seconds": trained.seconds}
    rows: dict[str, Sequence[Image.Image]] = {}
    with lab.with_result(trained) as pipeline:
        for label, negative in {"positive": "", "negative": avoided}.items():
            if label == "negative" and not avoided:
                continue
            painted = [(duo, lab.paint(pipeline, jobs(duo), _without(duo, negative))) for duo in duos]
            numbers[label] = judged(sight, painted)
            rows[label] = painted[0][1][:: len(PICTURE_SEEDS)]
    return Measured(numbers, rows)


def _without(duo: Sequence[Subject], negative: str) -> str | None:
    return negative.format(*(subject.phrase() for subject in duo)) if negative else None


def jobs(duo: Sequence[Subject]) -> list[Job]:
    """Return every prompt with every seed."""
    phrases = [subject.phrase() for subject in duo]
    return [(template.format(*phrases), seed) for template in TEMPLATES for seed in PICTURE_SEEDS]


def judged(sight: Sight, painted: Sequence[tuple[tuple[Subject, Subject], list[Image.Image]]]) -> dict[str, list[Any]]:
    """Return what each picture shows.

    `both`: whether both subjects are there; `crossed`: whether both halves show the same one; `seam`: how far the
    ground jumps in the middle; `score`: the lesser similarity of the two.
    """
    found: dict[str, list[Any]] = {"both": [], "crossed": [], "seam": [], "score": []}
    known = list(SUBJECTS.values())  # a half must win against subjects that nobody asked for, too
    kinds = [sight.small_references(subject) for subject in known]
    for duo, pictures in painted:
        wanted = [known.index(subject) for subject in duo]
        seen = [sight.nearest([half(picture, side) for picture in pictures], kinds) for side in CENTRES]
        for index, picture in enumerate(pictures):
            labels = [int(nearest[index]) for nearest, _ in seen]
            found["both"].append(int(sorted(labels) == sorted(wanted)))
            found["crossed"].append(int(labels[0] == labels[1]))
            found["seam"].append(round(seam(picture), 2))
            found["score"].append(round(_score([means[index] for _, means in seen], wanted), 5))
    return found


def _score(means: Sequence[np.ndarray[Any, Any]], wanted: Sequence[int]) -> float:
    """Return the lesser of the two subjects' similarities to a half each, in the better order."""
    first, second = wanted
    return float(max(min(means[0][first], means[1][second]), min(means[0][second], means[1][first])))


def wins(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> list[int]:
    """Return of each picture whether ours is better than theirs from the same prompt and seed.

    The paper asked its raters for both subjects on one consistent ground; where that does not decide, the score does.
    """
    found = []
    for index in range(len(ours["both"])):
        mine, other = (
            (side["both"][index] and side["seam"][index] < SEAM, side["score"][index]) for side in (ours, theirs)
        )
        found.append(int(mine > other))
    return found
