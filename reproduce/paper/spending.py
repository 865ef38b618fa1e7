"""Intervals that hold at every look together: a 5 % chance of error, spent look by look.

Whoever looks at growing data again and again, and stops when an ordinary 95 % interval pleases, errs far more often
than in 5 % of the cases. Group sequential designs (Lan and DeMets, 1983) say beforehand how much of the chance each
look may use: `spent`. The bounds follow by the recursion of Armitage, McPherson and Rowe (1969): what has not been
stopped yet is a density on an interval, and the next look adds an independent normal step to it. Jennison and
Turnbull (1989) call the intervals repeated confidence intervals: with a chance of 95 % all of them hold the true mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import pairwise
from math import erfc, floor, sqrt
from statistics import fmean, variance
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from svdiff_train.evaluate.statistics import Interval, student_quantile

Floats = NDArray[np.float64]

ALPHA: Final = 0.05
RHO: Final = 2.0
"""The power of Kim and DeMets (1987): 1 spends evenly, 3 is near O'Brien and Fleming's bounds."""
NODES: Final = 160
"""Of the quadrature; the bounds of published tables come out to their last digit."""


def spent(fraction: float, alpha: float = ALPHA) -> float:
    """Return how much of the chance of error is spent when a fraction of the planned units is there: α·tᵖ."""
    return float(alpha * min(1.0, fraction) ** RHO)


def bounds(fractions: Sequence[float], spending: Callable[[float], float]) -> tuple[float, ...]:
    """Return the bound c of each look, in standard errors: with a chance of 1 − α no |Z| of any look reaches its own.

    Args:
        fractions: of the planned units that are there at each look, rising up to 1.
        spending: the chance of error that is spent at a fraction.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    places, density, found = np.zeros(1), np.ones(1), list[float]()
    for before, now in pairwise((0.0, *fractions)):
        step = sqrt(now - before)
        bound = _bound(places, density, step, spending(now) - (spending(before) if before else 0.0))
        found.append(bound / sqrt(now))
        inside = nodes * bound  # of Brownian motion at time `now`, not stopped yet
        kernel = np.exp(-0.5 * ((inside[:, None] - places[None]) / step) ** 2) / (step * sqrt(2 * np.pi))
        places, density = inside, (kernel @ density) * weights * bound
    return tuple(found)


def _bound(places: Floats, density: Floats, step: float, share: float) -> float:
    """Return the b beyond which a share of the density lies after a normal step, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        beyond = _tail((middle - places) / step) + _tail((middle + places) / step)
        low, high = (middle, high) if float(beyond @ density) > share else (low, middle)
    return (low + high) / 2


_erfc = np.frompyfunc(erfc, 1, 1)


def _tail(values: Floats) -> Floats:
    """Return the chance that a standard normal number exceeds each value."""
    return np.asarray(_erfc(values / sqrt(2)), np.float64) / 2


@cache
def nominal(looks: tuple[int, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """Return the two-sided chance of error of each look by itself.

    Args:
        looks: how many units there are at each, rising.
        alpha: the chance that is spent over all of them.
    """
    fractions = tuple(count / looks[-1] for count in looks)
    return tuple(erfc(bound / sqrt(2)) for bound in bounds(fractions, lambda fraction: spent(fraction, alpha)))


class Error(NamedTuple):
    """How far a mean of units may be off.

    Attributes:
        size: the standard error.
        freedom: of Student's quantile that goes with it.
    """

    size: float
    freedom: int


def error_of_mean(values: Sequence[float], groups: Sequence[Hashable], grain: float = 0.0) -> Error:
    """Return the standard error of a mean over units.

    The mean is one over these groups, however often each was repeated. So from two units in every group on, what counts
    is how units of one group differ: by Welch and Satterthwaite, since one group may vary more than another. The plain
    estimate of its degrees of freedom is far too low for two or three units each, as it puts E[s⁴] for σ⁴; of normal
    values E[s⁴ ν / (ν + 2)] is σ⁴, and E[(Σ a)²] is (Σ α)² + 2 Σ α²/ν, which gives what stands below. Before that, what
    differs between groups counts as chance, too, which is never too narrow.

    Args:
        values: one for each unit, independent of each other, (n,).
        groups: what each unit is of, (n,).
        grain: the least that a unit can change by. Units that happen to be all alike are not taken for certain: in each
            group one counts as being a grain off.
    """
    found: defaultdict[Hashable, list[float]] = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        found[group].append(value)
    count = len(values)
    if min(map(len, found.values())) < 2:
        return Error(sqrt(max(variance(values) / count, (grain / count) ** 2)), count - 1)
    shares, squares = 0.0, 0.0
    for one in found.values():
        share = len(one) * max(variance(one), grain**2 / len(one)) / count**2  # of the mean's variance
        shares += share
        squares += share**2 / (len(one) + 1)  # ν + 2
    most = count - len(found)
    freedom = most if squares == 0 else min(most, max(1, floor(shares**2 / squares - 2)))
    return Error(sqrt(shares), freedom)


def repeated_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    looks: tuple[int, ...],
    look: int,
    *,
    alpha: float = ALPHA,
    grain: float = 0.0,
) -> Interval:
    """Return the mean of paired differences with the interval of a look.

    Student's quantile stands in for the normal one at the look's own chance of error (Jennison and Turnbull, 2000,
    section 4.4): close even for eight units, which a test shows by simulation.

    Args:
        values: one for each unit that the look takes, (looks[look],).
        groups: what each unit is of.
        looks: all that were planned.
        look: number of this one.
        alpha: the chance of error that is spent over all.
        grain: the least that a unit can change by.
    """
    error = error_of_mean(values, groups, grain)
    reach = student_quantile(1 - nominal(looks, alpha)[look], error.freedom) * error.size
    mean = fmean(values)
    return Interval(mean, mean - reach, mean + reach, len(values))
