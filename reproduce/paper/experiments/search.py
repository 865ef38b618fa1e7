"""(i) What the recipes were chosen by, on two subjects of their own: rates, λ, the weight of unmix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.recipe import PRIOR, RATES, Recipe
from reproduce.paper.subjects import SEARCHED
from svdiff_train.settings.config import MethodName

from .pairs import pair_cell, recipe
from .singles import single_cell

GRID: Final[Mapping[MethodName, tuple[float, ...]]] = {
    "svdiff": (2e-3, 5e-3, 1e-2, 2e-2),
    "full": (2e-5, 5e-5, 1e-4, 2e-4),
    "lora": (1e-3, 2e-3, 5e-3, 1e-2),
    "kv": (1e-4, 2e-4, 5e-4, 1e-3),
}
"""Learning rates that are tried; the lowest whose pictures show the subject (`LEARNED`) is in `RATES`.

The sum of both alignments would not choose: what text gains, image loses, so it is nearly the same at all rates, and
highest where hardly anything was learned.
"""

LEARNED: Final = 0.9
"""The share of pictures nearer to the subject's own than to the base's of its class, from which it is learned."""

PRIORS: Final = (0.0, 1.0)
"""λ that are tried, by SVDiff at its rate."""

UNMIXES: Final = (1.0, 10.0, 100.0)
"""Weights of the unmix regularization that are tried on both subjects at once, by SVDiff."""

PAIR_FACTORS: Final = (0.5, 1.0)
"""Factors on the learning rate that are tried on both subjects at once, with mixed samples and without unmix."""


def rate_name(subject: str, method: str, rate: float) -> str:
    """Return what the cell of a learning rate is called."""
    return f"{subject.replace(' ', '_')}-{method}-{rate:g}"


def prior_name(subject: str, prior: float) -> str:
    """Return what the cell of a λ is called; λ = 0 is what rates are tried with."""
    if prior == PRIOR:
        return rate_name(subject, "svdiff", RATES["svdiff"])
    return f"{subject.replace(' ', '_')}-prior-{prior:g}"


def unmix_name(weight: float) -> str:
    """Return what the cell of a weight is called."""
    return f"unmix-{weight:g}"


def factor_name(factor: float) -> str:
    """Return what the cell of a factor on the learning rate is called."""
    return f"pair-{factor:g}"


def cells() -> list[Cell]:
    """Return every learning rate of every method and every λ, for both subjects, and what is tried on the pair."""
    singles = {
        rate_name(subject, method, rate): Recipe(method=method, subjects=(subject,), faster=rate / RATES[method])
        for subject in SEARCHED
        for method, found in GRID.items()
        for rate in found
    }
    singles |= {
        prior_name(subject, prior): Recipe(subjects=(subject,), prior=prior) for subject in SEARCHED for prior in PRIORS
    }
    together = {factor_name(factor): recipe(SEARCHED, "svdiff", "mix", 0, faster=factor) for factor in PAIR_FACTORS}
    together |= {unmix_name(weight): recipe(SEARCHED, "svdiff", "unmix", 0, unmix=weight) for weight in UNMIXES}
    found = [single_cell("i", name, made, shown=True) for name, made in singles.items()]
    return found + [pair_cell("i", name, made, shown=True) for name, made in together.items()]
