"""Spherical interpolation between two δ, parameter by parameter (Shoemake 1985, doi:10.1145/325165.325242).

No sine of the platform is asked: they differ in their last bit, and files would with them. Section 7.6 of the spec has
the two coefficients in whole numbers, which are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from operator import mul
from typing import Final, cast

import numpy as np

from .method import Coordinates, Draw, Method, Options, weighted_sum

PLACES: Final = 256
"""Binary places of cosines and sines."""

SHARE_PLACES: Final = 128
"""Binary places of α; what is smaller shifts nothing that a delta could hold."""

PARALLEL: Final = 10**12
"""1 / sin² φ, above which the formula divides by nearly nothing, and a straight line is as good."""


def _merge(values: Sequence[Coordinates], weights: Sequence[float], options: Options, draw: Draw) -> Coordinates:
    """Return sin(αφ)/sin(φ) a + sin((1−α)φ)/sin(φ) b, with φ the angle between them; α = 1 is the first."""
    del weights, draw
    a, b = (_whole(value) for value in values)
    products = sum(map(mul, a, b)), sum(map(mul, a, a)), sum(map(mul, b, b))
    return weighted_sum(values, coefficients(*products, cast("float", options.alpha)))


def _whole(values: Coordinates) -> list[int]:
    """Return the values times one power of two that makes all of them whole numbers: angles stay."""
    parts, exponents = np.frexp(values)
    shifts = exponents - int(exponents.min(initial=0))
    return [
        part << shift for part, shift in zip((parts * 2.0**53).astype(np.int64).tolist(), shifts.tolist(), strict=True)
    ]


def coefficients(dot: int, first: int, second: int, alpha: float) -> tuple[float, float]:
    """Return the factors of a and b, whose products a·b, a·a and b·b these are (spec, section 7.6)."""
    product = first * second
    rest = product - dot * dot  # sin² φ, as the product is 1
    if rest * PARALLEL <= product:
        return alpha, 1.0 - alpha
    one = 1 << PLACES
    cosine = isqrt((dot * dot << 2 * PLACES) // product) * (1 if dot >= 0 else -1)
    sine = isqrt((rest << 2 * PLACES) // product)
    above, below = alpha.as_integer_ratio()
    share = (above << SHARE_PLACES) // below
    # x + iy is the product of those of e^(iφ), e^(iφ/2), e^(iφ/4), … whose bit α has.
    x, y, c, s = one, 0, cosine, sine
    place = SHARE_PLACES
    while share:
        if share >> place:
            share -= 1 << place
            x, y = (x * c - y * s) >> PLACES, (x * s + y * c) >> PLACES
        c = isqrt((one + c) << (PLACES - 1))
        s = (s << (PLACES - 1)) // c
        place -= 1
    return y / sine, ((sine * x - cosine * y) >> PLACES) / sine


slerp: Final = Method(_merge, {"alpha": None}, "doi:10.1145/325165.325242", inputs=2, weighted=False, whole=True)
