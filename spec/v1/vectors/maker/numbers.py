"""Number formats by exact rational arithmetic, each value rounded once (spec, sections 1 and 4.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

Values = list[Fraction]

PRECISION: Final = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
SMALLEST: Final = {"F64": -1074, "F32": -149, "F16": -24, "BF16": -133}
"""Exponent of the smallest number above zero."""

ITEM_SIZE: Final = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}
BLOCK: Final = 64
STEPS: Final = 127

LARGEST: Final = {
    "F32": Fraction((2**24 - 1) * 2**104),
    "F16": Fraction(65504),
    "BF16": Fraction((2**8 - 1) * 2**120),
    "I8": Fraction(STEPS * 65504),
}


class OutOfRangeError(ValueError):
    """A value is beyond the largest finite one of its format."""


class Stored(NamedTuple):
    """One δ as bytes: `scales` belong to I8 alone."""

    dtype: str
    data: bytes
    scales: bytes = b""


def power(exponent: int) -> Fraction:
    """Return two to this power."""
    return Fraction(2) ** exponent


def floor_log2(value: Fraction) -> int:
    """Return the exponent of a positive number."""
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if value >= power(guess) else guess - 1


def nearest(value: Fraction, name: str) -> Fraction:
    """Round once, to the nearest number of the format, ties to even; the range is not looked at."""
    if not value:
        return value
    unit = power(max(floor_log2(abs(value)) - PRECISION[name] + 1, SMALLEST[name]))
    return round(value / unit) * unit  # `round` of a Fraction takes ties to even


def checked(values: Values, name: str) -> Values:
    """Return the values, none of which is beyond the format."""
    if any(abs(value) > LARGEST[name] for value in values):
        raise OutOfRangeError(name)
    return values


def encode(values: Values, name: str) -> Stored:
    """Round values once to the format and return their bytes."""
    checked(values, name)
    if name == "I8":
        return _count(values)
    return Stored(name, b"".join(_bytes(nearest(value, name), name) for value in values))


def _bytes(value: Fraction, name: str) -> bytes:
    if name == "BF16":
        return struct.pack("<f", float(value))[2:]
    return struct.pack({"F32": "<f", "F16": "<e"}[name], float(value))


def _count(values: Values) -> Stored:
    counts, scales = b"", b""
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        scale = half_above(max(map(abs, block)) / STEPS)
        scales += _bytes(scale, "F16")
        counts += struct.pack(f"<{len(block)}b", *(round(value / scale) if scale else 0 for value in block))
    return Stored("I8", counts, scales)


def half_above(value: Fraction) -> Fraction:
    """Return the smallest F16 number that is at least as large."""
    close = nearest(value, "F16")
    if close >= value:
        return close
    return close + power(max(floor_log2(value) - PRECISION["F16"] + 1, SMALLEST["F16"]))


def decode(stored: Stored) -> Values:
    """Return the exact values of bytes."""
    name, data = stored.dtype, stored.data
    if name == "BF16":
        wide = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
        return decode(Stored("F32", wide))
    if name == "I8":
        scales = decode(Stored("F16", stored.scales))
        return [count * scales[i // BLOCK] for i, count in enumerate(struct.unpack(f"<{len(data)}b", data))]
    letter = {"F32": "f", "F16": "e"}[name]
    return [Fraction(value) for value in struct.unpack(f"<{len(data) // ITEM_SIZE[name]}{letter}", data)]


def exact(values: Iterable[float | int | str | Fraction]) -> Values:
    """Return rational numbers of floats, or of texts such as `1/3`."""
    return [Fraction(value) for value in values]


def hexadecimal(values: Sequence[Fraction]) -> list[str]:
    """Return C99 hexadecimal floats of numbers that are exact in F64."""
    return [float(value).hex() for value in values]


def project(values: Values, tied: Sequence[tuple[int, int]], null: int) -> Values:
    """Return δ projected on its runs: exact sum, rounded once to F64, divided in F64 (spec, section 6.4)."""
    result = list(values)
    for first, last in tied:
        run = result[first : last + 1]
        if any(value != run[0] for value in run):
            mean = nearest(nearest(sum(run, Fraction(0)), "F64") / len(run), "F64")
            result[first : last + 1] = [mean] * len(run)
    return result[: len(result) - null] + [Fraction(0)] * null
