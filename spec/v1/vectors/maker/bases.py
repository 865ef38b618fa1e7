"""Weights whose singular values are known exactly by construction, with δ and ΔW (spec, section 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import prod
from typing import NamedTuple

from .container import JSON
from .delta import Runs, Shape, fingerprint
from .matrices import (
    THIRDS,
    TURN,
    TWO,
    Row,
    Triple,
    change_of,
    choose_dtype,
    columns_of,
    diagonal,
    kron,
    orthogonal,
    root,
    total,
    triple,
    unit,
    unmatricized,
)
from .numbers import Values, exact, hexadecimal, nearest


class Case(NamedTuple):
    """A weight, its sum of σᵢ uᵢ vᵢᵀ as a matrix, and δ; `triples` is empty for elementwise ones."""

    about: str
    shape: Shape
    axis: int
    stored: str
    basis: str
    triples: Sequence[Triple]
    shifts: Sequence[Row]
    tied: Runs = ()
    null: int = 0
    noise: Row = ()


def rectangular() -> Iterator[Case]:
    """Yield matrices."""
    eye4 = [[Fraction(int(i == j)) for j in range(4)] for i in range(4)]
    four = kron(TWO, TWO)
    yield Case(
        "diagonal", (3, 3), 0, "F16", "F16", diagonal(3, 3, (3, 2, 0.5)), [(0.25,) * 3, (0.5, -1, 0.125), (-4, -4, -4)]
    )
    yield Case(
        "a scaled permutation with signs, wider than high",
        (3, 4),
        0,
        "F32",
        "F16",
        diagonal(3, 4, (8, 2, 1), ((1, 3, -1), (2, 0, 1), (0, 1, -1))),
        [(1, 1, 1), (-9, 0.5, 0.25)],
    )
    yield Case(
        "a scaled permutation, higher than wide",
        (5, 2),
        0,
        "BF16",
        "F16",
        diagonal(5, 2, (6, 4), ((4, 0, 1), (1, 1, -1))),
        [(0.5, 0.5), (2, -1)],
    )
    yield Case(
        "identity", (4, 4), 0, "F16", "F16", columns_of(eye4, (1,) * 4, eye4), [(0.5,) * 4, (-2,) * 4], ((0, 3),)
    )
    yield Case(
        "Hadamard, divided by 2: orthogonal",
        (4, 4),
        0,
        "F32",
        "F16",
        columns_of(four, (0.5,) * 4, eye4),
        [(0.25,) * 4],
        ((0, 3),),
    )
    yield Case(
        "Hadamard of two: σ is √2 twice",
        (2, 2),
        0,
        "F16",
        "F16",
        [triple((1, 1), (1, 0)), triple((1, -1), (0, 1))],
        [(0.25, 0.25)],
        ((0, 1),),
    )
    yield Case("zero", (3, 2), 0, "F16", "F16", [], [(0, 0)], (), 2)
    yield Case("one row", (1, 3), 0, "F16", "F16", [triple((1,), (2, 3, 6))], [(0.5,), (-7.5,)])
    yield Case("one column", (4, 1), 0, "F16", "F16", [triple((1, 1, 1, 1), (1.5,))], [(1,), (-0.25,)])
    yield Case("one element, negative", (1, 1), 0, "F16", "F16", [triple((-1,), (2.5,))], [(1,), (-3,)])
    yield Case(
        "two turns by 3-4-5", (2, 2), 0, "F16", "F16", columns_of(TURN, (100, 25), TURN), [(5, 5), (10, -30), (-4, 8)]
    )
    yield Case(
        "thirds: (1, 2, 2) / 3, rank 2 of 3",
        (3, 3),
        0,
        "F16",
        "F16",
        columns_of(THIRDS, (36, 9), THIRDS),
        [(3, 3, 0), (-40, 9, 0)],
        (),
        1,
    )
    yield Case(
        "rank 1 of 4", (6, 4), 0, "F16", "F16", [triple((1, 2, 2, 4, 10, 10), (1, 1, 7, 7))], [(2, 0, 0, 0)], (), 3
    )
    large = columns_of(kron(TWO, TURN), (50, 50, 50, 25), kron(TWO, TURN))
    yield Case(
        "a turned basis with one σ three times",
        (4, 4),
        0,
        "F16",
        "F16",
        large,
        [(8, 8, 8, 8), (16, 16, 16, -8)],
        ((0, 2),),
    )
    yield Case(
        "two tied pairs and one alone",
        (5, 5),
        0,
        "F16",
        "F16",
        diagonal(5, 5, (4, 4, 2, 1, 1), ((2, 1, 1), (0, 0, -1), (4, 4, 1), (1, 3, 1), (3, 2, -1))),
        [(0.5,) * 5, (1, 1, -0.5, 0.25, 0.25)],
        ((0, 1), (3, 4)),
    )


def layers() -> Iterator[Case]:
    """Yield convolutions and other layers with an axis."""
    rows = ((2, 3, 6, 0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 2, 2, 0, 0, 0))
    yield Case(
        "convolution 3x3: one row for each channel of the output",
        (2, 1, 3, 3),
        0,
        "F16",
        "F16",
        [triple(unit(2, i), row) for i, row in enumerate(rows)],
        [(0.5, 0.5), (-8, 1)],
    )
    yield Case(
        "transposed convolution: the second axis is the rows",
        (2, 3, 1, 2),
        1,
        "F16",
        "F16",
        [triple(unit(3, 2), (3, 4, 0, 0)), triple(unit(3, 0), (0, 0, 0, 4)), triple(unit(3, 1), (0, 0, -2, 0))],
        [(1, 1, 1), (2, -1, 0.5)],
    )
    yield Case(
        "a linear layer that is stored transposed",
        (2, 3),
        1,
        "F16",
        "F16",
        [triple((2, 1, 2), (1, 0)), triple((1, 2, -2), (0, 0.5))],
        [(0.5, 0.5), (-1, 2)],
    )
    yield Case(
        "convolution in three dimensions",
        (2, 2, 1, 2, 1),
        0,
        "F16",
        "F16",
        [triple((1, 1), (1, 1, 1, 1)), triple((1, -1), (1, -1, 0, 0))],
        [(0.25, 0.25), (1, -1)],
    )


def gaps() -> Iterator[Case]:
    """Yield σ about the tolerances of section 6.4."""
    a, b = 2.0**-24, 2.0**-23
    yield Case("neighbours 5.96e-8 apart are tied", (2, 2), 0, "F32", "F32", diagonal(2, 2, (1, 1 - a)), [], ((0, 1),))
    yield Case("neighbours 1.19e-7 apart are not", (2, 2), 0, "F32", "F32", diagonal(2, 2, (1, 1 - b)), [])
    yield Case(
        "a chain of small gaps is one run",
        (4, 4),
        0,
        "F32",
        "F32",
        diagonal(4, 4, (1, 1 - a, 1 - 2 * a, 1 - 3 * a)),
        [],
        ((0, 3),),
    )
    yield Case("5.96e-8 of σ₁ is null", (2, 2), 0, "F16", "F16", diagonal(2, 2, (1, a)), [(0.5, 0)], (), 1)
    yield Case("1.19e-7 of σ₁ is not", (2, 2), 0, "F16", "F16", diagonal(2, 2, (1, b)), [(2.0**-22,) * 2])
    yield Case(
        "a run that reaches down to null is null as a whole",
        (3, 3),
        0,
        "F32",
        "F32",
        diagonal(3, 3, (1, 2.5 * a, a)),
        [(0.5, 0, 0)],
        (),
        2,
    )
    yield Case("the limit counts from σ₁", (3, 3), 0, "F16", "F16", diagonal(3, 3, (64, 1, 1 - 2.0**-11)), [(1, 1, 1)])


def roundings() -> Iterator[Case]:
    """Yield weights that their basis dtype rounds, or that choose another one."""

    def plus(values: Row) -> list[Triple]:
        return diagonal(
            len(values),
            len(values),
            [abs(float(value)) for value in values],
            [(i, i, 1 if value >= 0 else -1) for i, value in enumerate(values)],
        )

    yield Case("exact in BF16 alone", (2, 2), 0, "F32", "BF16", plus((65536, 0.5)), [(0.25, 0.25), (-70000, 1)])
    yield Case(
        "rounded to F16: exact in neither 16-bit format",
        (2, 2),
        0,
        "F32",
        "F16",
        plus((2.001953125, 1)),
        [(0.5, 0.5)],
        noise=(2.0**-20, 0, 0, -(2.0**-20)),
    )
    yield Case(
        "beyond F16 and exact in no other: F32",
        (2, 2),
        0,
        "F32",
        "F32",
        columns_of(TURN, (25 * 2**14, 25), TURN),
        [(5, 5)],
    )
    yield Case(
        "too small for F16: F32",
        (2, 2),
        0,
        "F32",
        "F32",
        plus((1.0000001192092896 * 2**-24, 2.0**-26)),
        [(2.0**-28,) * 2],
    )
    yield Case(
        "F64 is rounded to F32 before anything else",
        (2, 2),
        0,
        "F64",
        "F16",
        plus((3, 2)),
        [(0.5, 0.5)],
        noise=(2.0**-40, -(2.0**-60), 0, 0),
    )


def _elementwise() -> Iterator[JSON]:
    """Yield a norm weight and an elementwise one of two dimensions: ΔW is δ."""
    weight, shift = exact((65536, 0.5, -1, 0)), exact((0.125, -0.25, 2, 0))
    common = {
        "stored": "F32",
        "kind": "elementwise",
        "basis_dtype": "BF16",
        "chosen": "BF16",
        "tied": [],
        "null": 0,
        "sigma": [],
    }
    for shape, axis in (((4,), 0), ((2, 2), 1)):
        yield {
            "about": f"elementwise, {len(shape)} dimensions", "shape": list(shape), "axis": axis, **common,
            "weight": hexadecimal(weight), "rounded": hexadecimal(weight),
            "fingerprint": fingerprint(shape, axis, weight),
            "shifts": [{"delta": hexadecimal(shift), "change": hexadecimal(shift)}],
        }  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield all spectral cases in order."""
    for group in (rectangular, layers, gaps, roundings):
        yield from group()


def manifest() -> JSON:
    """Return all basis cases."""
    return {"cases": [*map(_row, cases()), *_elementwise()]}


def _row(case: Case) -> JSON:
    rows = case.shape[case.axis]
    columns = prod(case.shape) // rows
    count = min(rows, columns)
    ordered = sorted(case.triples, key=lambda item: -item.square)
    sigma = [root(item.square) for item in ordered] + [Fraction(0)] * (count - len(ordered))
    rounded = unmatricized(total([item.scaled for item in ordered], rows, columns), case.shape, case.axis)
    weight = [a + b for a, b in zip(rounded, exact(case.noise) or [Fraction(0)] * len(rounded), strict=True)]
    _check(case, weight, rounded)
    shifts = [(shift, change_of(ordered, sigma, exact(shift), rows, columns)) for shift in case.shifts]
    return {
        "about": case.about, "shape": list(case.shape), "axis": case.axis, "stored": case.stored, "kind": "spectral",
        "basis_dtype": case.basis, "chosen": choose_dtype(weight),
        "weight": hexadecimal(weight), "rounded": hexadecimal(rounded),
        "fingerprint": fingerprint(case.shape, case.axis, rounded),
        "sigma": hexadecimal([nearest(value, "F64") for value in sigma]),
        "tied": [list(run) for run in case.tied], "null": case.null,
        "shifts": [
            {"delta": hexadecimal(exact(shift)),
             "change": hexadecimal([nearest(x, "F64") for x in unmatricized(change, case.shape, case.axis)])}
            for shift, change in shifts
        ],
    }  # fmt: skip


def _check(case: Case, weight: Values, rounded: Values) -> None:
    """Refuse a case that is not what it says: a weight in its format, rounded to its basis dtype, orthogonal parts."""
    once = [nearest(value, "F32") for value in weight]
    if [nearest(value, case.basis) for value in once] != rounded or [nearest(v, case.stored) for v in weight] != weight:
        raise ValueError(case.about)
    if not orthogonal(case.triples):
        raise ValueError(f"{case.about}: parts that are not orthogonal")
