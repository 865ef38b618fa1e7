"""TIES: trim each δ, elect a sign per coordinate, average those that agree (Yadav et al. 2023, arXiv:2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np

from .method import Coordinates, Draw, Method, Options, keep_largest, weighted_sum


def _merge(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    del draw
    density = cast("float", options.density)
    return elect_and_average([keep_largest(value, density) for value in values], weights)


def elect_and_average(values: Sequence[Coordinates], weights: Sequence[float]) -> Coordinates:
    """Return, per coordinate, the weighted mean of the inputs whose sign is that of Σ wᵢ vᵢ; 0 where that is 0.

    An input that is 0 there has no sign and does not count. A negative weight turns its input's sign.
    """
    # The sign with the larger sum of magnitudes is that of the plain sum ("elect" in the paper).
    sign = np.sign(weighted_sum(values, weights))
    total, share = np.zeros_like(values[0]), np.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        agrees = (np.sign(weight * value) == sign) & (sign != 0)
        total[agrees] += weight * value[agrees]
        share[agrees] += abs(weight)  # the mean is over those that agree, so that few do not shrink it
    return np.divide(total, share, out=np.zeros_like(total), where=share != 0)


ties: Final = Method(_merge, {"density": None}, "arXiv:2306.01708")
