"""(a) Single subjects (section 4.1, Fig. 9b), and what is measured the same way: (d) subsets (Table 1), (h) ranks."""

from __future__ import annotations

from functools import partial
from typing import Final, get_args

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.choices import Choices
from reproduce.paper.lab import Lab
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight
from reproduce.paper.subjects import slug
from svdiff_train.settings.config import MethodName

from .judge import measured

METHODS: Final[tuple[MethodName, ...]] = get_args(MethodName)
RANKS: Final = (1, 4, 16, 64)


def single(choices: Choices, name: str, method: MethodName = "svdiff", seed: int = 0) -> Recipe:
    """Return the training of one subject."""
    return Recipe(rate=choices.rates[method], method=method, subjects=(name,), seed=seed)


def cell(choices: Choices, name: str, method: MethodName, seed: int) -> Cell:
    """Return a cell of (a): a subject by a method."""
    return single_cell("a", f"{slug(name)}-{method}-{seed}", single(choices, name, method, seed), shown=seed == 0)


def subset_recipe(choices: Choices, name: str, subset: str, seed: int) -> Recipe:
    """Return the training of a subset of Table 1."""
    return Recipe(rate=choices.rates["svdiff"], subjects=(name,), selectors=(subset,), seed=seed)


def subset_cell(choices: Choices, name: str, subset: str, seed: int) -> Cell:
    """Return a cell of (d); the whole UNet is what (a) trains."""
    if subset == "unet":
        return cell(choices, name, "svdiff", seed)
    made = subset_recipe(choices, name, subset, seed)
    return single_cell("d", f"{slug(name)}-{subset}-{seed}", made, shown=seed == 0)


def rank_cell(choices: Choices, name: str, rank: int, seed: int) -> Cell:
    """Return a cell of (h): the largest singular values only."""
    made = Recipe(rate=choices.rates["svdiff"], subjects=(name,), rank=rank, seed=seed)
    return single_cell("h", f"{slug(name)}-rank-{rank}-{seed}", made, shown=seed == 0)


def single_cell(letter: str, name: str, recipe: Recipe, *, shown: bool) -> Cell:
    """Return a cell that measures one subject."""
    return Cell(letter, name, partial(_measure, recipe), (recipe,), shown)


def _measure(recipe: Recipe, lab: Lab, sight: Sight) -> Measured:
    trained = lab.trained(recipe)
    numbers, pictures = measured(lab, sight, trained)
    facts = {"seconds": trained.seconds, "size": trained.size}
    return Measured({**numbers, **facts}, {"painted": pictures[:: max(1, len(pictures) // 4)]})
