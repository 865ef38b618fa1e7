"""(a) Single subjects (section 4.1, Fig. 9b), and what is measured the same way: (d) subsets (Table 1), (h) ranks."""

from __future__ import annotations

from functools import partial
from typing import Final, get_args

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.lab import Lab
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight
from reproduce.paper.subjects import ABLATED, SINGLES
from svdiff_delta.selectors.subsets import PAPER
from svdiff_train.settings.config import MethodName

from .judge import measured

METHODS: Final[tuple[MethodName, ...]] = get_args(MethodName)
SEEDS: Final = (0, 1, 2)
RANKS: Final = (1, 4, 16, 64)


def single(name: str, method: MethodName = "svdiff", seed: int = 0) -> Recipe:
    """Return the training of one subject."""
    return Recipe(method=method, subjects=(name,), seed=seed)


def cells() -> list[Cell]:
    """Return (a): every subject by every method, three times."""
    return [
        single_cell("a", f"{_slug(name)}-{method}-{seed}", single(name, method, seed), shown=seed == 0)
        for seed in SEEDS
        for name in SINGLES
        for method in METHODS
    ]


def subset_cells() -> list[Cell]:
    """Return (d): three subjects on each of the paper's twelve subsets."""
    return [
        single_cell("d", f"{subset}-{_slug(name)}", subset_recipe(name, subset), shown=name == ABLATED[0])
        for name in ABLATED
        for subset in PAPER
    ]


def subset_recipe(name: str, subset: str) -> Recipe:
    """Return the training of a subset; the whole UNet is what (a) trains."""
    return single(name) if subset == "unet" else Recipe(subjects=(name,), selectors=(subset,))


def rank_cells() -> list[Cell]:
    """Return the first half of (h): three subjects with the largest singular values only."""
    return [
        single_cell("h", f"rank-{rank}-{_slug(name)}", Recipe(subjects=(name,), rank=rank), shown=name == ABLATED[0])
        for name in ABLATED
        for rank in RANKS
    ]


def single_cell(letter: str, name: str, recipe: Recipe, *, shown: bool) -> Cell:
    """Return a cell that measures one subject."""
    return Cell(letter, name, partial(_measure, recipe), (recipe,), shown)


def _measure(recipe: Recipe, lab: Lab, sight: Sight) -> Measured:
    trained = lab.trained(recipe)
    numbers, pictures = measured(lab, sight, recipe, trained.results)
    facts = {"seconds": trained.seconds, "size": trained.size}
    return Measured({**numbers, **facts}, {"painted": pictures[:: max(1, len(pictures) // 4)]})


def _slug(name: str) -> str:
    return name.replace(" ", "_")
