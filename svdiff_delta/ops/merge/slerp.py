"""Spherical interpolation between two δ, parameter by parameter (Shoemake 1985, doi:10.1145/325165.325242)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np

from .method import Coordinates, Draw, Method, Options, weighted_sum

PARALLEL: Final = 1e-6  # of sin φ: below it the formula divides by nearly nothing, and a straight line is as good


def _merge(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    """Return sin(αφ)/sin(φ) a + sin((1−α)φ)/sin(φ) b, with φ the angle between them; α = 1 is the first."""
    del weights, draw
    a, b = values
    alpha = cast("float", options.alpha)
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else 1.0
    angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    sine = float(np.sin(angle))
    if sine < PARALLEL:
        return weighted_sum(values, [alpha, 1.0 - alpha])
    return weighted_sum(values, [float(np.sin(alpha * angle)) / sine, float(np.sin((1.0 - alpha) * angle)) / sine])


slerp: Final = Method(_merge, {"alpha": None}, "doi:10.1145/325165.325242", inputs=2, weighted=False, whole=True)
