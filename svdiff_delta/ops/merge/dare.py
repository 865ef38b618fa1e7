"""DARE: drop coordinates at random, rescale the rest, then sum or TIES (Yu et al. 2023, arXiv:2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np

from .method import Coordinates, Draw, Method, Options, weighted_sum
from .ties import elect_and_average


def _drop(values: Sequence[Coordinates], options: Options, draw: Draw) -> list[Coordinates]:
    """Keep each coordinate with probability `density`, divided by it, so that the expectation stays."""
    density = cast("float", options.density)
    return [np.where(draw(index) < density, value / density, 0.0) for index, value in enumerate(values)]


def _sum(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    return weighted_sum(_drop(values, options, draw), weights)


def _ties(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    return elect_and_average(_drop(values, options, draw), weights)


dare_linear: Final = Method(_sum, {"density": None, "seed": 0}, "arXiv:2311.03099")
dare_ties: Final = Method(_ties, {"density": None, "seed": 0}, "arXiv:2311.03099")
