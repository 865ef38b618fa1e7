"""(b) Two and three subjects (sections 3.3 and 4.2, Fig. 6), with and without Cut-Mix-Unmix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.lab import Job, Lab
from reproduce.paper.recipe import STEPS, Recipe
from reproduce.paper.sight import CENTRES, SEAM, Sight, half, seam
from reproduce.paper.subjects import PAIRS, SUBJECTS, TRIPLE, Subject
from svdiff_train.settings.config import MethodName

Variant = Literal["plain", "mix", "unmix"]
VARIANTS: Final[tuple[Variant, ...]] = ("plain", "mix", "unmix")
METHODS: Final[tuple[MethodName, ...]] = ("svdiff", "full")
SEEDS: Final = (0, 1)
MIX: Final = 0.6
UNMIX: Final = 10.0
"""The weight of the unmix regularization: of those in `search`, that with the highest mean score."""

STEPS_OF_PAIRS: Final = 3 * STEPS
"""Two subjects, and what they look like together, are learned in one run."""

FASTER: Final = 1.0
"""Factor on the learning rate of single subjects; of those in the search, that with the highest mean score."""

TEMPLATES: Final = (
    "a photo of {0} beside {1}",
    "a photo of {1} next to {0}",
    "{0} and {1} on a blue background",
    "{0} beside {1} on a purple background",
)
"""Other wordings than those of the mixed samples that are learned from."""
NEGATIVE: Final = "photo of {0} on the left and {1} on the right"
PICTURE_SEEDS: Final = (0, 1, 2)


def recipe(
    names: tuple[str, ...],
    method: MethodName,
    variant: Variant,
    seed: int,
    *,
    unmix: float = UNMIX,
    faster: float = FASTER,
) -> Recipe:
    """Return the training of several subjects."""
    return Recipe(
        method=method,
        subjects=names,
        seed=seed,
        mix=0.0 if variant == "plain" else MIX,
        unmix=unmix if variant == "unmix" else 0.0,
        faster=faster,
        steps=STEPS_OF_PAIRS,
    )


def cells() -> list[Cell]:
    """Return four pairs with every method and variant, twice; then three subjects at once, once."""
    found = [
        _cell(names, method, variant, seed)
        for seed in SEEDS
        for names in PAIRS
        for variant in VARIANTS
        for method in METHODS
    ]
    return found + [_cell(TRIPLE, method, variant, SEEDS[0]) for variant in VARIANTS[:2] for method in METHODS]


def cell_name(names: tuple[str, ...], method: str, variant: str, seed: int) -> str:
    """Return what a cell is called."""
    return f"{'+'.join(names).replace(' ', '_')}-{method}-{variant}-{seed}"


def _cell(names: tuple[str, ...], method: MethodName, variant: Variant, seed: int) -> Cell:
    made = recipe(names, method, variant, seed)
    return pair_cell("b", cell_name(names, method, variant, seed), made, shown=seed == 0)


def pair_cell(letter: str, name: str, made: Recipe, *, shown: bool) -> Cell:
    """Return a cell that measures several subjects."""
    return Cell(letter, name, partial(_measure, made), (made,), shown)


def _measure(made: Recipe, lab: Lab, sight: Sight) -> Measured:
    trained = lab.trained(made)
    subjects = [SUBJECTS[name] for name in made.subjects]
    duos = list(combinations(subjects, 2))
    numbers: dict[str, Any] = {"seconds": trained.seconds}
    rows: dict[str, Sequence[Image.Image]] = {}
    with lab.with_result(made, trained.last) as pipeline:
        painted = [(duo, lab.paint(pipeline, jobs(duo))) for duo in duos]
        numbers["positive"] = judged(sight, painted)
        rows["painted"] = painted[0][1][:: len(PICTURE_SEEDS)]
        if made.mix:
            avoided = [
                (duo, lab.paint(pipeline, jobs(duo), NEGATIVE.format(*(subject.phrase() for subject in duo))))
                for duo in duos
            ]
            numbers["negative"] = judged(sight, avoided)
            rows["negative"] = avoided[0][1][:: len(PICTURE_SEEDS)]
    return Measured(numbers, rows)


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
