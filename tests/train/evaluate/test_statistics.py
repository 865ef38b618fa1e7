"""Intervals against published values, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import bootstrap_interval, mean_interval, wilson_interval
from svdiff_train.evaluate.statistics import student_quantile

# Two-sided 95 % and 99 % points of Student's distribution, as printed in every table.
STUDENT = [
    (0.95, 1, 12.706),
    (0.95, 2, 4.303),
    (0.95, 3, 3.182),
    (0.95, 4, 2.776),
    (0.95, 9, 2.262),
    (0.95, 30, 2.042),
    (0.95, 120, 1.980),
    (0.99, 1, 63.657),
    (0.99, 10, 3.169),
]

# Newcombe (1998), table I, method 3.
WILSON = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("confidence", "freedom", "printed"), STUDENT)
def test_the_quantiles_are_those_of_the_tables(confidence: float, freedom: int, printed: float) -> None:
    assert student_quantile(confidence, freedom) == pytest.approx(printed, abs=5.01e-4)


@pytest.mark.parametrize(("successes", "trials", "low", "high"), WILSON)
def test_proportions_have_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson_interval(successes, trials)
    assert found.mean == successes / trials
    assert (found.low, found.high) == (pytest.approx(low, abs=5.01e-5), pytest.approx(high, abs=5.01e-5))


def test_all_of_some_ends_at_one() -> None:
    found, mirrored = wilson_interval(20, 20), wilson_interval(0, 20)
    assert found.high == 1
    assert found.low == pytest.approx(1 - (mirrored.high or 0))


def test_a_mean_lies_in_the_middle_of_its_interval() -> None:
    found = mean_interval([4.0, 6.0, 8.0])  # mean 6, s = 2, t = 4.303
    assert (found.mean, found.count) == (6, 3)
    assert found.low == pytest.approx(6 - 4.303 * 2 / 3**0.5, abs=1e-3)
    assert found.high == pytest.approx(6 + 4.303 * 2 / 3**0.5, abs=1e-3)


def test_one_value_has_no_interval() -> None:
    for found in (mean_interval([3.0]), bootstrap_interval([3.0])):
        assert (found.mean, found.low, found.high, str(found)) == (3, None, None, "3.000")


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = mean_interval(rng.normal(1.0, 2.0, 6))
        held += (found.low or 0) <= 1 <= (found.high or 0)
    assert 0.935 < held / 2000 < 0.965


def test_the_bootstrap_repeats_and_agrees_with_student_on_normal_values() -> None:
    values = np.random.default_rng(1).normal(0, 1, 200)
    found, again, other = (bootstrap_interval(values, seed=seed) for seed in (0, 0, 1))
    assert found == again
    assert found != other
    student = mean_interval(values)
    assert found.low == pytest.approx(student.low, abs=0.02)
    assert found.high == pytest.approx(student.high, abs=0.02)


def test_what_is_no_mean_or_proportion_is_refused() -> None:
    for values in ([], [1.0, float("nan")], [[1.0]]):
        with pytest.raises(InputError, match="no mean"):
            mean_interval(values)
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError, match="no proportion"):
            wilson_interval(successes, trials)
    with pytest.raises(InputError, match="no confidence"):
        wilson_interval(1, 2, confidence=95)
