"""Magnitude pruning before the sum: of each δ the largest shifts stay (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from .method import Coordinates, Draw, Method, Options, keep_largest, weighted_sum


def _merge(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    del draw
    density = cast("float", options.density)
    return weighted_sum([keep_largest(value, density) for value in values], weights)


magnitude: Final = Method(_merge, {"density": None}, "arXiv:1506.02626")
