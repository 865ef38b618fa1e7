"""(e) Individually trained results in one model (section 4.4): their sum (Fig. 8) and interpolations (Fig. 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.choices import Choices
from reproduce.paper.lab import Job, Lab
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight
from reproduce.paper.subjects import SUBJECTS, slug
from svdiff_delta.io import load
from svdiff_delta.ops import arithmetic
from svdiff_train.sampling.weight_difference import open_difference, tuned_weights
from svdiff_train.settings.config import MethodName

from .judge import jobs
from .pairs import jobs as pair_jobs
from .pairs import judged as judged_pairs
from .singles import single

METHODS: Final[tuple[MethodName, ...]] = ("svdiff", "full")
ALPHAS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS: Final = (0, 1, 2, 3)
THING: Final = "thing"


def sum_cell(choices: Choices, names: tuple[str, ...], method: MethodName, seed: int) -> Cell:
    """Return a cell of (e): the sum of two results of (a)."""
    recipes = tuple(single(choices, name, method, seed) for name in names)
    name = f"sum-{slug(*names)}-{method}-{seed}"
    return Cell("e", name, partial(_sum, recipes), recipes, shown=seed == 0)


def way_cell(choices: Choices, names: tuple[str, ...], method: MethodName, seed: int) -> Cell:
    """Return a cell of (e): the way between two subjects, both learned as a "thing" as in the paper."""
    recipes = tuple(
        Recipe(rate=choices.rates[method], method=method, subjects=(name,), noun=THING, seed=seed) for name in names
    )
    name = f"way-{slug(*names)}-{method}-{seed}"
    return Cell("e", name, partial(_interpolate, recipes), recipes, shown=seed == 0)


def _sum(recipes: Sequence[Recipe], lab: Lab, sight: Sight) -> Measured:
    """Measure each subject in its own model and in the sum, and both in one picture by the sum."""
    subjects = [SUBJECTS[recipe.subjects[0]] for recipe in recipes]
    alone, together, classes, rows = [], [], [], {}
    before = [lab.paint_base(jobs(f"a {subject.noun}")) for subject in subjects]
    with combined(lab, recipes, (1.0, 1.0)) as pipeline:
        both = [lab.paint(pipeline, jobs(subject.phrase())) for subject in subjects]
        pair = lab.paint(pipeline, pair_jobs(subjects))
    for recipe, subject, pictures, plain in zip(recipes, subjects, both, before, strict=True):
        with lab.with_result(lab.trained(recipe)) as pipeline:
            own = lab.paint(pipeline, jobs(subject.phrase()))
        references = sight.references(subject)
        alone.append(round(float(sight.image_alignment(own, references).mean()), 5))
        together.append(round(float(sight.image_alignment(pictures, references).mean()), 5))
        classes.append(round(float(sight.image_alignment(plain, references).mean()), 5))
        rows[subject.name.replace(" ", "_")] = pictures[::2]
    rows["pair"] = pair[::3]
    duo = (subjects[0], subjects[1])
    numbers = {"alone": alone, "together": together, "class": classes, "pair": judged_pairs(sight, [(duo, pair)])}
    return Measured(numbers, rows)


def _interpolate(ends: Sequence[Recipe], lab: Lab, sight: Sight) -> Measured:
    """Measure how like the first and the second end pictures are on the way between them."""
    first, second = (SUBJECTS[recipe.subjects[0]] for recipe in ends)
    like, rows = [], {}
    for alpha in ALPHAS:
        with combined(lab, ends, (alpha, 1.0 - alpha)) as pipeline:
            pictures = [
                picture for subject in (first, second) for picture in lab.paint(pipeline, _jobs(ends, subject.token))
            ]
        means = [sight.image_alignment(pictures, sight.references(subject)).mean() for subject in (first, second)]
        like.append([round(float(value), 5) for value in means])
        rows[f"{alpha:g}"] = pictures
    return Measured(
        {"alphas": list(ALPHAS), "like": like, "smooth": _steps(rows)}, {"strip": [row[0] for row in rows.values()]}
    )


def _jobs(ends: Sequence[Recipe], token: str) -> list[Job]:
    noun = ends[0].noun or SUBJECTS[ends[0].subjects[0]].noun
    return [(f"a photo of a {token} {noun}", seed) for seed in SEEDS]


def _steps(rows: dict[str, list[Image.Image]]) -> list[float]:
    """Return the mean difference of colours between neighbours on the way, of 255."""
    stacked = [np.stack([np.asarray(picture, np.float64) for picture in row]) for row in rows.values()]
    return [round(float(np.abs(b - a).mean()), 3) for a, b in pairwise(stacked)]


@contextmanager
def combined(lab: Lab, recipes: Sequence[Recipe], weights: Sequence[float]) -> Iterator[Any]:
    """Give a pipeline with W + Σ wᵢ ΔWᵢ, or with σ + Σ wᵢ δᵢ (Eq. 4 and 5)."""
    paths = [lab.trained(recipe).result for recipe in recipes]
    if recipes[0].method == "svdiff":
        with lab.with_delta(arithmetic.add(*map(load, paths), weights=tuple(weights))) as pipeline:
            yield pipeline
        return
    tuned = [open_difference(path, lab.base) for path in paths]
    with tuned_weights(lab.pipeline, list(zip(tuned, weights, strict=True))):
        yield lab.pipeline
