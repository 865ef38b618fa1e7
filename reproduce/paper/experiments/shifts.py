"""What only spectral shifts can do: (f) style mixing (Fig. 10), (g) correlation (Fig. 9a), (h) scales."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import Final

import numpy as np
from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.lab import Lab
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight, colours, silhouette
from reproduce.paper.subjects import ABLATED, SINGLES, SUBJECTS
from svdiff_delta.io import load
from svdiff_delta.ops.arithmetic import style_mix
from svdiff_delta.ops.stats import mean_cosine

from .judge import jobs, scores
from .singles import single, subset_recipe

MIXED_SUBSET: Final = "unet-2d"
"""The subset that the paper mixes styles in."""
MIXED_LAYERS: Final = "(4,down,0)-(4,down,1)"
"""The cross-attention around the middle, as (16,down,1)-(8,down,0) is in Stable Diffusion 1.5."""
MIXED_SEEDS: Final = (0, 1, 2, 3)
SCALES: Final = (0.0, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
FASTER: Final = 0.5
"""The second run of the correlation's diagonal has this times the learning rate."""


def style_cells() -> list[Cell]:
    """Return (f): every order of two of three subjects."""
    found = []
    for geometry, appearance in permutations(ABLATED, 2):
        recipes = (subset_recipe(geometry, MIXED_SUBSET), subset_recipe(appearance, MIXED_SUBSET))
        name = f"{geometry}-as-{appearance}".replace(" ", "_")
        found.append(Cell("f", name, partial(_style, recipes), recipes, shown=geometry == ABLATED[0]))
    return found


def _style(recipes: tuple[Recipe, Recipe], lab: Lab, sight: Sight) -> Measured:  # noqa: ARG001
    """Compare the mix with both of its parents, painted from the same noise."""
    geometry, appearance = (load(lab.trained(recipe).last) for recipe in recipes)
    first, second = (SUBJECTS[recipe.subjects[0]] for recipe in recipes)
    painted: dict[str, list[Image.Image]] = {}
    for label, delta, subject in (
        ("geometry", geometry, first),
        ("appearance", appearance, second),
        ("mixed", style_mix(geometry, appearance, layers=MIXED_LAYERS), first),
    ):
        with lab.with_delta(delta) as pipeline:
            painted[label] = lab.paint(pipeline, [(f"a photo of {subject.phrase()}", seed) for seed in MIXED_SEEDS])
    shape = {parent: _mean_overlap(painted["mixed"], painted[parent]) for parent in ("geometry", "appearance")}
    colour = {parent: _mean_colours(painted["mixed"], painted[parent]) for parent in ("geometry", "appearance")}
    plain = _mean_colours(painted["geometry"], painted["appearance"])
    return Measured({"shape": shape, "colour": colour, "parents": plain}, painted)


def _mean_overlap(ours: list[Image.Image], theirs: list[Image.Image]) -> float:
    """Return the mean intersection over union of silhouettes."""
    pairs = [(silhouette(a), silhouette(b)) for a, b in zip(ours, theirs, strict=True)]
    return round(float(np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs])), 5)


def _mean_colours(ours: list[Image.Image], theirs: list[Image.Image]) -> float:
    """Return the mean share of colours in common."""
    pairs = [(colours(a), colours(b)) for a, b in zip(ours, theirs, strict=True)]
    return round(float(np.mean([np.minimum(a, b).sum() for a, b in pairs])), 5)


def correlation_cells() -> list[Cell]:
    """Return (g): one cell of all cosines."""
    recipes = tuple(single(name) for name in SINGLES)
    again = tuple(Recipe(subjects=(name,), faster=FASTER) for name in SINGLES)
    return [Cell("g", "cosines", partial(_cosines, recipes, again), (*recipes, *again))]


def _cosines(recipes: tuple[Recipe, ...], again: tuple[Recipe, ...], lab: Lab, sight: Sight) -> Measured:  # noqa: ARG001
    deltas = [load(lab.trained(recipe).last) for recipe in recipes]
    others = [load(lab.trained(recipe).last) for recipe in again]
    matrix = [
        [round(mean_cosine(a, others[row] if row == column else b), 5) for column, b in enumerate(deltas)]
        for row, a in enumerate(deltas)
    ]
    return Measured({"names": [recipe.subjects[0] for recipe in recipes], "matrix": matrix})


def scale_cells() -> list[Cell]:
    """Return the second half of (h): three subjects' deltas at several scales."""
    return [
        Cell(
            "h",
            f"scales-{name}".replace(" ", "_"),
            partial(_scales, single(name)),
            (single(name),),
            shown=name == ABLATED[0],
        )
        for name in ABLATED
    ]


def _scales(recipe: Recipe, lab: Lab, sight: Sight) -> Measured:
    subject = SUBJECTS[recipe.subjects[0]]
    delta = load(lab.trained(recipe).last)
    found, strip = [], []
    for scale in SCALES:
        with lab.with_delta(delta, scale) as pipeline:
            pictures = lab.paint(pipeline, jobs(subject.phrase()))
        found.append({"scale": scale, **scores(lab, sight, pictures, subject, subject.noun)})
        strip.append(pictures[0])
    return Measured({"scales": found}, {"strip": strip})
