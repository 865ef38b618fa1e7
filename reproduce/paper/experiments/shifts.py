"""What only spectral shifts can do: (f) style mixing (Fig. 10), (g) correlation (Fig. 9a), (h) scales, sizes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.choices import STYLES, Choices, Style
from reproduce.paper.lab import Lab
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight, colours, silhouette
from reproduce.paper.subjects import SUBJECTS, slug
from svdiff_delta.io import load
from svdiff_delta.ops.arithmetic import style_mix
from svdiff_delta.ops.stats import mean_cosine

from .judge import jobs, scores
from .singles import single, subset_recipe

MIXED_SUBSET: Final = "unet-2d"
"""The subset that the paper mixes styles in."""
SHARED_TOKEN: Final = "V1"  # noqa: S105
SHARED_NOUN: Final = "thing"
MIXED_SEEDS: Final = (0, 1, 2, 3)
SCALES: Final = (0.0, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
SLOWER: Final = 0.5
"""The second run of the correlation's diagonal has this times the learning rate."""


def style_recipe(choices: Choices, name: str, style: Style, seed: int) -> Recipe:
    """Return the training of one of the two subjects whose styles are mixed."""
    if not style.shared:
        return subset_recipe(choices, name, MIXED_SUBSET, seed)
    return Recipe(
        rate=choices.rates["svdiff"], subjects=(name,), seed=seed, selectors=(MIXED_SUBSET,),
        noun=SHARED_NOUN, token=SHARED_TOKEN,
    )  # fmt: skip


def style_cell(
    choices: Choices, names: tuple[str, ...], seed: int, *, letter: str = "f", label: str | None = None
) -> Cell:
    """Return a cell of (f): the first subject's geometry with the second's appearance."""
    chosen = choices.style if label is None else label
    style = STYLES[chosen]
    recipes = tuple(style_recipe(choices, name, style, seed) for name in names)
    name = f"{slug(names[0])}-as-{slug(names[1])}-{seed}"
    name = name if label is None else f"{slug(label).replace(',', '')}-{name}"
    return Cell(letter, name, partial(_style, recipes, style), recipes, shown=seed == 0, about=chosen)


def _style(recipes: tuple[Recipe, ...], style: Style, lab: Lab, sight: Sight) -> Measured:  # noqa: ARG001
    """Compare the mix with both of its parents, painted from the same noise."""
    geometry, appearance = (load(lab.trained(recipe).result) for recipe in recipes)
    phrases = [SUBJECTS[recipe.subjects[0]].phrase(recipe.noun, recipe.token) for recipe in recipes]
    named = phrases[0] if style.named == "geometry" else phrases[1]
    painted: dict[str, list[Image.Image]] = {}
    for label, delta, phrase in (
        ("geometry", geometry, phrases[0]),
        ("appearance", appearance, phrases[1]),
        ("mixed", style_mix(geometry, appearance, layers=style.layers), named),
    ):
        with lab.with_delta(delta) as pipeline:
            painted[label] = lab.paint(pipeline, [(f"a photo of {phrase}", seed) for seed in MIXED_SEEDS])
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


def cosine_cell(choices: Choices, name: str, other: str) -> Cell:
    """Return a cell of (g): a subject's shift beside its own from another run, and beside another subject's."""
    again = Recipe(rate=round(choices.rates["svdiff"] * SLOWER, 9), subjects=(name,))
    recipes = (single(choices, name), again, single(choices, other))
    return Cell("g", f"{slug(name)}-beside-{slug(other)}", partial(_cosines, recipes), recipes)


def _cosines(recipes: tuple[Recipe, ...], lab: Lab, sight: Sight) -> Measured:  # noqa: ARG001
    first, again, other = (load(lab.trained(recipe).result) for recipe in recipes)
    return Measured({"own": round(mean_cosine(first, again), 5), "other": round(mean_cosine(first, other), 5)})


def scale_cell(choices: Choices, name: str, seed: int) -> Cell:
    """Return a cell of (h): a subject's delta of (a) at several scales."""
    recipe = single(choices, name, seed=seed)
    return Cell("h", f"{slug(name)}-scales-{seed}", partial(_scales, recipe), (recipe,), shown=seed == 0)


def _scales(recipe: Recipe, lab: Lab, sight: Sight) -> Measured:
    subject = SUBJECTS[recipe.subjects[0]]
    delta = load(lab.trained(recipe).result)
    found, strip = [], []
    for scale in SCALES:
        with lab.with_delta(delta, scale) as pipeline:
            pictures = lab.paint(pipeline, jobs(subject.phrase()))
        found.append({"scale": scale, **scores(lab, sight, pictures, subject, subject.noun)})
        strip.append(pictures[0])
    return Measured({"scales": found}, {"strip": strip})


STABLE_DIFFUSION: Final[dict[str, Any]] = {
    "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}  # fmt: skip
"""The configuration of the paper's UNet, that of Stable Diffusion 1; all else is diffusers' default."""


def size_cell() -> Cell:
    """Return the cell of sizes: counted at the shapes of the paper's UNet, and at those of the embedded base."""
    return Cell("a", "sizes", _sizes, ())


def _sizes(lab: Lab, sight: Sight) -> Measured:  # noqa: ARG001
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        paper = UNet2DConditionModel(**STABLE_DIFFUSION)
    counted = {"paper": count_sizes(paper), "here": count_sizes(lab.pipeline.unet)}
    return Measured(counted)


def count_sizes(unet: Any) -> dict[str, int]:
    """Return how many numbers a UNet has, and how many singular values: a vector counts as its length."""
    weights = shift = 0
    for name, value in unet.named_parameters():
        weights += value.numel()
        if name.endswith(".weight"):
            rows = value.shape[0]
            shift += rows if value.ndim == 1 else min(rows, value.numel() // rows)
    return {"weights": weights, "shift": shift}
