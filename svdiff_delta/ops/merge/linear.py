"""The weighted sum: Σ wᵢ δᵢ (Eq. 4 with weights; task arithmetic, Ilharco et al. 2022, arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .method import Coordinates, Draw, Method, Options, weighted_sum


def _merge(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    del options, draw
    return weighted_sum(values, weights)


linear: Final = Method(_merge, {}, "arXiv:2212.04089")
