"""(i) What the recipes were chosen by, on subjects that no other experiment has: rates, λ, the weight of unmix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svdiff_train.config import MethodName
from svdiff_train.paper.cell import Cell
from svdiff_train.paper.recipe import RATES, Recipe
from svdiff_train.paper.subjects import SEARCHED

from .pairs import pair_cell, recipe
from .singles import single_cell

GRID: Final[Mapping[MethodName, tuple[float, ...]]] = {
    "svdiff": (2e-3, 5e-3, 1e-2),
    "full": (2e-5, 5e-5, 1e-4),
    "lora": (2e-3, 5e-3, 1e-2),
    "kv": (1e-4, 2e-4, 5e-4),
}
"""Learning rates that are tried; that with the highest sum of both alignments is the one in `RATES`."""

PRIORS: Final = (0.0, 1.0)
"""λ that are tried, by SVDiff at its rate."""


UNMIXES: Final = (1.0, 10.0, 100.0)
"""Weights of the unmix regularization that are tried, by SVDiff at its rate."""

SEARCHED_PAIR: Final = (SEARCHED, "guide dog")
"""The pair that they are tried on."""


PAIR_FACTORS: Final = (1.0, 2.0)
"""Factors on the learning rate that are tried on it, with mixed samples and without unmix."""


def rate_name(method: str, rate: float) -> str:
    """Return what the cell of a learning rate is called."""
    return f"{method}-{rate:g}"


def prior_name(prior: float) -> str:
    """Return what the cell of a λ is called; λ = 0 is what rates are tried with."""
    return f"prior-{prior:g}" if prior else rate_name("svdiff", RATES["svdiff"])


def unmix_name(weight: float) -> str:
    """Return what the cell of a weight is called."""
    return f"unmix-{weight:g}"


def factor_name(factor: float) -> str:
    """Return what the cell of a factor on the learning rate is called."""
    return f"pair-{factor:g}"


def cells() -> list[Cell]:
    """Return every learning rate of every method, every λ, and every weight of unmix."""
    rates = {
        rate_name(method, rate): Recipe(method=method, subjects=(SEARCHED,), faster=rate / RATES[method])
        for method, found in GRID.items()
        for rate in found
    }
    priors = {prior_name(prior): Recipe(subjects=(SEARCHED,), prior=prior) for prior in PRIORS}
    singles = [single_cell("i", name, made, shown=True) for name, made in (rates | priors).items()]
    unmixes = {unmix_name(weight): recipe(SEARCHED_PAIR, "svdiff", "unmix", 0, unmix=weight) for weight in UNMIXES}
    mixed = {factor_name(factor): recipe(SEARCHED_PAIR, "svdiff", "mix", 0, faster=factor) for factor in PAIR_FACTORS}
    return singles + [pair_cell("i", name, made, shown=True) for name, made in (mixed | unmixes).items()]
