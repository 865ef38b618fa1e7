"""Matrices made of orthogonal parts, so that their singular values are known without decomposing them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt, prod
from typing import Final, NamedTuple

from .delta import Shape
from .numbers import LARGEST, Values, nearest

Matrix = list[Values]
Row = Sequence[float | Fraction]

TURN: Final = [[Fraction(3, 5), Fraction(-4, 5)], [Fraction(4, 5), Fraction(3, 5)]]
TWO: Final = [[Fraction(1), Fraction(1)], [Fraction(1), Fraction(-1)]]
THIRDS: Final = [[Fraction(a, 3) for a in row] for row in ((1, 2, 2), (2, 1, -2), (2, -2, 1))]


class Triple(NamedTuple):
    """σ² and the outer product u vᵀ times `root`, where σ = √σ² need not be rational: u vᵀ σ is always."""

    square: Fraction
    scaled: Matrix  # σ u vᵀ


def root(value: Fraction) -> Fraction:
    """Return a square root to far more digits than F64 has."""
    shift = 2**400
    return Fraction(isqrt(value.numerator * shift * shift * value.denominator), value.denominator * shift)


def outer(u: Row, v: Row) -> Matrix:
    """Return u vᵀ."""
    return [[Fraction(a) * Fraction(b) for b in v] for a in u]


def triple(u: Row, v: Row, sigma: float | Fraction = 1) -> Triple:
    """Return σ‖u‖‖v‖ and its directions, of vectors of any length."""
    scaled = [[entry * Fraction(sigma) for entry in row] for row in outer(u, v)]
    return Triple(sum((entry**2 for row in scaled for entry in row), Fraction(0)), scaled)


def columns_of(U: Sequence[Row], sigma: Sequence[float], V: Sequence[Row]) -> list[Triple]:
    """Return the triples of two matrices with orthogonal columns of equal length."""
    return [triple([row[i] for row in U], [row[i] for row in V], value) for i, value in enumerate(sigma)]


def unit(size: int, index: int, sign: int = 1) -> list[float]:
    """Return a vector with a single 1."""
    return [float(sign) if i == index else 0.0 for i in range(size)]


def diagonal(
    rows: int, columns: int, sigma: Sequence[float], order: Sequence[tuple[int, int, int]] = ()
) -> list[Triple]:
    """Return σ at the places (row, column, sign), on the diagonal if none are given."""
    places = order or [(index, index, 1) for index in range(len(sigma))]
    return [
        triple(unit(rows, i, sign), unit(columns, j), value) for value, (i, j, sign) in zip(sigma, places, strict=True)
    ]


def kron(a: Sequence[Sequence[Fraction]], b: Sequence[Sequence[Fraction]]) -> Matrix:
    """Return the Kronecker product."""
    return [[x * y for x in row for y in other] for row in a for other in b]


def total(parts: Sequence[Matrix], rows: int, columns: int) -> Matrix:
    """Return the sum of matrices."""
    return [[sum((part[i][j] for part in parts), Fraction(0)) for j in range(columns)] for i in range(rows)]


def unmatricized(matrix: Matrix, shape: Shape, axis: int) -> Values:
    """Return the elements in the order of the weight's own shape (spec, section 6.3)."""
    before, length, after = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    return [matrix[i][first * after + last] for first in range(before) for i in range(length) for last in range(after)]


def choose_dtype(weight: Values) -> str:
    """Return the basis dtype that a writer gives a weight (spec, section 6.1)."""
    half = [nearest(value, "F16") for value in weight]
    fits = all(abs(value) <= LARGEST["F16"] for value in half)
    if fits and half == weight:
        return "F16"
    if [nearest(value, "BF16") for value in weight] == weight:
        return "BF16"
    lost = sum((a - b) ** 2 for a, b in zip(half, weight, strict=True))
    return "F16" if fits and lost <= Fraction(1, 100) ** 2 * sum(value**2 for value in weight) else "F32"


def change_of(triples: Sequence[Triple], sigma: Values, shift: Values, rows: int, columns: int) -> Matrix:
    """Return Σ max(δᵢ, −σᵢ) uᵢ vᵢᵀ."""
    parts = []
    for item, value, delta in zip(triples, sigma, shift, strict=False):  # beyond the triples σ and δ are 0
        gain = max(delta / value, Fraction(-1))
        parts.append([[gain * entry for entry in row] for row in item.scaled])
    return total(parts, rows, columns)


def orthogonal(triples: Sequence[Triple]) -> bool:
    """Tell whether the rows and the columns of all parts are orthogonal to those of each other."""
    for index, a in enumerate(triples):
        for b in triples[:index]:
            right = [_dot(r, s) for r in a.scaled for s in b.scaled]
            left = [_dot(r, s) for r in zip(*a.scaled, strict=True) for s in zip(*b.scaled, strict=True)]
            if any(left) or any(right):
                return False
    return True


def _dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))
