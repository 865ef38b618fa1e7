"""When a claim agrees, differs, or is undecided."""

from __future__ import annotations

import pytest

from reproduce.paper.claim import SHARE, all_of, higher, shown, similar, table
from reproduce.paper.sections.pairs import more_often


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.1, 0.11, 0.12, 0.1], "agrees"),
        ([-0.1, -0.11, -0.12, -0.1], "differs"),
        ([-0.1, 0.12, 0.1, -0.09], "undecided"),
        ([0.1], "not measured"),
        ([], "not measured"),
    ],
)
def test_higher_is_judged_by_the_interval(values: list[float], verdict: str) -> None:
    assert higher(values) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.001, -0.002, 0.001, 0.0], "agrees"),
        ([0.1, 0.11, 0.12, 0.1], "differs"),
        ([-0.1, 0.12, 0.1, -0.09], "undecided"),
        ([], "not measured"),
    ],
)
def test_similar_is_judged_by_the_margin(values: list[float], verdict: str) -> None:
    assert similar(values, 0.03) == verdict


def test_a_claim_of_parts_is_as_good_as_its_worst_part() -> None:
    assert all_of("agrees", "agrees") == "agrees"
    assert all_of("agrees", "undecided") == "undecided"
    assert all_of("undecided", "differs") == "differs"
    assert all_of("differs", "not measured") == "not measured"


def test_shares_differ_where_their_intervals_do_not_meet() -> None:
    assert more_often([1] * 40 + [0] * 10, [1] * 10 + [0] * 40) == "agrees"
    assert more_often([1] * 10 + [0] * 40, [1] * 40 + [0] * 10) == "differs"
    assert more_often([1, 0], [0, 0]) == "undecided"
    assert more_often([], [1]) == "not measured"


def test_a_mean_is_shown_with_its_interval() -> None:
    # three values of mean 2 and standard error 1/sqrt(3): t(0.975, 2) = 4.3027
    assert shown([1.0, 2.0, 3.0], 2) == "2.00 [-0.48, 4.48]"
    assert shown([]) == "–"


def test_a_share_is_shown_within_what_shares_can_be() -> None:
    # mean 0.75 and standard error 0.25: t(0.975, 2) = 4.3027 would reach 1.83
    assert shown([1.0, 1.0, 0.25], 2, within=SHARE) == "0.75 [0.00, 1.00]"
    assert shown([0.5, 0.5], 2, within=SHARE) == "0.50 [0.50, 0.50]"
    assert shown([0.5], 2, within=SHARE) == "0.50"
    assert shown([], within=SHARE) == "–"


def test_a_table_has_one_line_per_row() -> None:
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]
