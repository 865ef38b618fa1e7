"""Means and proportions with intervals that hold the true value with a given probability."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from svdiff_delta.errors import InputError

CONFIDENCE: Final = 0.95
DRAWS: Final = 10_000
"""Resamplings of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A mean or proportion.

    Attributes:
        mean: of the values.
        low: lower end; None if a single value leaves it open.
        high: upper end; None likewise.
        count: how many values there are.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def facts(self) -> dict[str, float | int | None]:
        """Return it for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean with Student's interval, x̄ ± t·s/√n: right for normal values, and nearly so for many others.

    Args:
        values: independent of each other, (n,).
        confidence: probability that the interval holds the true mean.

    Raises:
        InputError: there are none, one is not finite, or the confidence is not between 0 and 1.
    """
    given = _checked(values, confidence)
    mean, count = float(given.mean()), len(given)
    if count == 1:
        return Interval(mean, None, None, count)
    reach = student_quantile(confidence, count - 1) * float(given.std(ddof=1)) / sqrt(count)
    return Interval(mean, mean - reach, mean + reach, count)


def bootstrap_interval(values: ArrayLike, confidence: float = CONFIDENCE, *, seed: int = 0) -> Interval:
    """Return the mean with the percentile bootstrap's interval, which assumes no distribution; for 20 values or more.

    Args:
        values: independent of each other, (n,).
        confidence: probability that the interval holds the true mean.
        seed: of the resampling.

    Raises:
        InputError: as `mean_interval`.
    """
    given = _checked(values, confidence)
    mean, count = float(given.mean()), len(given)
    if count == 1:
        return Interval(mean, None, None, count)
    rng = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    for start in range(0, DRAWS, 500):  # in parts: a whole table of draws would be large
        means[start : start + 500] = given[rng.integers(0, count, (500, count))].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high), count)


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a proportion, such as a win rate, with Wilson's score interval, which holds for few trials too.

    Args:
        successes: how many.
        trials: of how many.
        confidence: probability that the interval holds the true proportion.

    Raises:
        InputError: there are no trials, more successes than trials, or the confidence is not between 0 and 1.
    """
    _check_confidence(confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"{successes} of {trials} is no proportion", fix="count from 0 to all of at least one trial")
    share, z = successes / trials, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Exact at the ends, where rounding could cross them.
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == trials else centre + reach
    return Interval(share, low, high, trials)


def share_interval(found: NDArray[np.bool_], confidence: float = CONFIDENCE) -> Interval:
    """Return how often something is true, with Wilson's interval."""
    return wilson_interval(int(found.sum()), found.size, confidence)


@cache
def student_quantile(confidence: float, freedom: int) -> float:
    """Return t with P(|T| ≤ t) = confidence, for Student's distribution with a whole number of degrees of freedom.

    The probability is a finite sum in θ = atan(t/√ν) (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return sqrt(freedom) * tan((low + high) / 2)


def _within(theta: float, freedom: int) -> float:
    odd = freedom % 2
    # Factors of successive terms: 1/2, 3/4, 5/6, … times cos² for even ν; 2/3, 4/5, … for odd.
    steps = np.arange(1 + odd, freedom - 2 + odd, 2)
    terms = np.cumprod(np.concatenate([[cos(theta) ** odd], steps / (steps + 1) * cos(theta) ** 2]))
    series = sin(theta) * float(terms.sum())
    if not odd:
        return series
    return 2 / pi * (theta + (series if freedom > 1 else 0.0))


def _checked(values: ArrayLike, confidence: float) -> NDArray[np.float64]:
    _check_confidence(confidence)
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
        raise InputError("there is no mean of these values", fix="give a list of at least one finite number")
    return given


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"{confidence} is no confidence", fix="use a number between 0 and 1, such as 0.95")
