"""The chance of error that looks spend, against published tables and by simulation."""

from __future__ import annotations

from math import e, log
from statistics import NormalDist, fmean

import numpy as np
import pytest

from reproduce.paper.spending import bounds, error_of_mean, nominal, repeated_interval, spent
from svdiff_train.evaluate.statistics import student_quantile

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
NORMAL = NormalDist()
ALONE = range(8)
"""Every unit is of another subject."""


def pocock_like(fraction: float) -> float:
    return 0.05 * log(1 + (e - 1) * fraction)


def obrien_fleming_like(fraction: float) -> float:
    return 4 * (1 - NORMAL.cdf(NORMAL.inv_cdf(1 - 0.025 / 2) / fraction**0.5))


def test_bounds_are_those_of_published_tables() -> None:
    # Lan and DeMets' two functions at five equal looks, two-sided 0.05 (Jennison and Turnbull, 2000, chapter 7).
    assert bounds(FIFTHS, pocock_like) == pytest.approx((2.438, 2.427, 2.410, 2.397, 2.386), abs=6e-4)
    assert bounds(FIFTHS, obrien_fleming_like) == pytest.approx((4.877, 3.357, 2.680, 2.290, 2.031), abs=6e-4)


def test_one_look_is_an_ordinary_interval() -> None:
    assert nominal((8,)) == pytest.approx((0.05,), abs=1e-9)


def test_the_whole_chance_is_spent_at_the_end_and_no_more() -> None:
    assert spent(1.0) == 0.05
    assert spent(1.3) == 0.05
    assert [spent(share) for share in (0.25, 0.5)] == pytest.approx([0.05 / 16, 0.05 / 4])


@pytest.mark.parametrize("looks", [(8, 16, 24, 32), (12, 18, 24)])
def test_all_intervals_hold_the_mean_together(looks: tuple[int, ...]) -> None:
    # 4,000 runs of normal units: the share that errs at any look is 0.05 within four standard errors, 0.0138;
    # ordinary intervals at each look would err in 0.10 to 0.13.
    rng, erred, plain = np.random.default_rng(5), 0, 0
    runs = rng.standard_normal((4000, looks[-1]))
    reach = [student_quantile(1 - share, count - 1) for share, count in zip(nominal(looks), looks, strict=True)]
    usual = [student_quantile(0.95, count - 1) for count in looks]
    for run in runs:
        sizes = [abs(run[:count].mean()) / (run[:count].std(ddof=1) / count**0.5) for count in looks]
        erred += any(size > bound for size, bound in zip(sizes, reach, strict=True))
        plain += any(size > bound for size, bound in zip(sizes, usual, strict=True))
    assert abs(erred / 4000 - 0.05) < 0.0138
    assert plain / 4000 > 0.08


def test_an_interval_is_student_s_at_the_look_s_own_chance() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 5.0, 2.0, 3.0, 4.0]
    found = repeated_interval(values, ALONE, (8,), 0)
    # t(0.975, 7) = 2.3646
    reach = 2.3646 * float(np.std(values, ddof=1)) / 8**0.5
    assert found.mean == fmean(values)
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach), abs=1e-3)
    early = repeated_interval(values, ALONE, (8, 16, 24), 0)
    assert early.low is not None
    assert found.low is not None
    assert early.low < found.low


def test_units_that_are_all_alike_are_not_taken_for_certain() -> None:
    found = repeated_interval([0.0] * 8, ALONE, (8,), 0, grain=1 / 12)
    # one picture of twelve more in one of eight units: a standard error of 1/96, times t(0.975, 7) = 2.3646
    assert found.high == pytest.approx(2.3646 / 96, abs=1e-4)
    assert found.low == pytest.approx(-2.3646 / 96, abs=1e-4)


def test_what_differs_between_subjects_is_no_chance_once_each_was_repeated() -> None:
    values, groups = [0.0, 5.0, 9.0, 0.2, 5.4, 9.0], [0, 1, 2, 0, 1, 2]
    variances = [0.02, 0.08, 0.0]  # with ν = 1 each, of means of two
    shares = [value / 2 / 9 for value in variances]
    error = error_of_mean(values, groups)
    assert error.size == pytest.approx(sum(shares) ** 0.5)
    assert error.freedom == int(sum(shares) ** 2 / sum(share**2 / 3 for share in shares) - 2) == 2
    assert error_of_mean(values[:5], groups[:5]).freedom == 4  # one was not repeated yet
    assert error_of_mean(values[:5], groups[:5]).size == pytest.approx(float(np.std(values[:5], ddof=1)) / 5**0.5)


def test_the_weight_of_a_subject_is_how_often_it_was_taken() -> None:
    values, groups = [1.0, 2.0, 3.0, 7.0, 9.0], ["a", "a", "a", "b", "b"]
    error = error_of_mean(values, groups)
    assert error.size == pytest.approx(((3 / 5) ** 2 * 1.0 / 3 + (2 / 5) ** 2 * 2.0 / 2) ** 0.5)
    assert error.freedom <= 3


def test_repeats_that_are_all_alike_count_as_a_picture_off() -> None:
    error = error_of_mean([0.0] * 12, [0, 1, 2, 3, 4, 5] * 2, grain=1 / 12)
    # s² of (0, 1/12) is 1/288; of two, in six subjects
    assert error.size == pytest.approx((6 * (1 / 288) / 2 / 36) ** 0.5)
    assert error.freedom == 6


@pytest.mark.parametrize("spreads", [(1.0,), (1.0, 0.2)], ids=["alike", "half of the subjects five times less"])
def test_intervals_of_few_seeds_hold_the_mean_over_these_subjects_together(spreads: tuple[float, ...]) -> None:
    # 4,000 runs of eight subjects that differ by twice what seeds differ by; four standard errors are 0.0138. With the
    # degrees of freedom of equal spreads the second would err in 0.075; with the plain estimate both err in 0.03.
    rng, erred, looks = np.random.default_rng(7), 0, (8, 16, 24)
    groups = [*range(8)] * 3
    for _ in range(4000):
        own = 2 * rng.standard_normal(8)
        run = np.tile(own, 3) + np.tile(np.resize(spreads, 8), 3) * rng.standard_normal(24)
        found = [repeated_interval([*run[:count]], groups[:count], looks, k) for k, count in enumerate(looks)]
        erred += any(not one.low <= own.mean() <= one.high for one in found)  # type: ignore[operator]
    assert abs(erred / 4000 - 0.05) < 0.0138
