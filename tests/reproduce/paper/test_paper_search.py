"""That recipes are what the committed search says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from reproduce.paper.experiments.pairs import FASTER, UNMIX
from reproduce.paper.experiments.search import (
    GRID,
    LEARNED,
    PAIR_FACTORS,
    PRIORS,
    UNMIXES,
    factor_name,
    prior_name,
    rate_name,
    unmix_name,
)
from reproduce.paper.plan import search_cells
from reproduce.paper.recipe import PRIOR, RATES
from reproduce.paper.subjects import SEARCHED

REPORTS = Path(__file__).parents[3] / "reports"
REPORT = (REPORTS / "paper.md").read_text("utf-8")


@pytest.fixture(scope="module")
def found() -> Mapping[str, Mapping[str, Any]]:
    """Numbers of the search on the base that the report names; the test below tells that none is missing."""
    named = re.search(r"^All cells below belong to one base, that with the fingerprint `(\w+)`", REPORT, re.MULTILINE)
    assert named
    base = named[1]
    known = {cell.name: cell.known(REPORTS, base) for cell in search_cells()}
    return {name: numbers for name, numbers in known.items() if numbers is not None}


def test_all_of_the_search_is_measured_with_the_recipes_of_now_on_the_report_s_base(
    found: Mapping[str, Any],
) -> None:
    assert set(found) == {cell.name for cell in search_cells()}


@pytest.mark.parametrize("method", RATES)
def test_a_rate_is_the_lowest_with_which_both_subjects_are_learned(found: Mapping[str, Any], method: Any) -> None:
    identity = {
        rate: mean(found[rate_name(subject, method, rate)]["identity"] for subject in SEARCHED) for rate in GRID[method]
    }
    assert RATES[method] == min(rate for rate, share in identity.items() if share >= LEARNED)


def test_prior_preservation_is_left_out_because_it_keeps_subjects_from_being_learned(found: Mapping[str, Any]) -> None:
    identity = {prior: mean(found[prior_name(subject, prior)]["identity"] for subject in SEARCHED) for prior in PRIORS}
    assert max(identity, key=identity.__getitem__) == PRIOR


def test_what_pairs_take_has_the_highest_mean_score(found: Mapping[str, Any]) -> None:
    factors = {factor: mean(found[factor_name(factor)]["positive"]["score"]) for factor in PAIR_FACTORS}
    weights = {weight: mean(found[unmix_name(weight)]["positive"]["score"]) for weight in UNMIXES}
    assert max(factors, key=factors.__getitem__) == FASTER
    assert max(weights, key=weights.__getitem__) == UNMIX
