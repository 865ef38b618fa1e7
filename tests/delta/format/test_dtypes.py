"""Rounding to and from bytes, against `struct` and exact fractions."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laws import law

from svdiff_delta.format.dtypes import DTYPES, LARGEST, Dtype, Stored, encode
from svdiff_delta.format.entry import ITEM_SIZE

PATTERNS = np.arange(2**16, dtype="<u2").tobytes()
doubles = st.floats(allow_nan=False, allow_infinity=False)


def bfloat16(bits: int) -> float:
    """The value of a bfloat16: the upper half of a float32."""
    return struct.unpack("<f", struct.pack("<HH", 0, bits))[0]


def nearest_bfloat16(value: float) -> float:
    """The nearest bfloat16 by exact fractions; of two as near, the one with an even bit pattern."""
    lowest, highest = 0, 0x7F7F
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        lowest, highest = (middle, highest) if bfloat16(middle) <= abs(value) else (lowest, middle)
    exact = Fraction(abs(value))
    return bfloat16(min((lowest, highest), key=lambda bits: (abs(Fraction(bfloat16(bits)) - exact), bits & 1)))


def equal_or_both_nan(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def test_every_float16_is_read_exactly() -> None:
    expected = np.array(struct.unpack(f"<{2**16}e", PATTERNS))
    assert equal_or_both_nan(Stored("F16", PATTERNS).decode(), expected)


def test_every_bfloat16_is_read_exactly() -> None:
    with np.errstate(invalid="ignore"):
        expected = np.array([bfloat16(bits) for bits in range(2**16)])
    assert equal_or_both_nan(Stored("BF16", PATTERNS).decode(), expected)


def test_float32_is_read_exactly() -> None:
    raw = struct.pack("<4f", 0.1, -2.5, 3.4028234663852886e38, 1e-45)
    assert Stored("F32", raw).decode().tolist() == list(struct.unpack("<4f", raw))


def test_what_is_read_can_be_changed_without_changing_the_bytes() -> None:
    raw = struct.pack("<2f", 1, 2)
    Stored("F32", raw).decode()[0] = 7
    assert raw == struct.pack("<2f", 1, 2)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_finite_pattern_survives_reading_and_writing(dtype: Dtype) -> None:
    values = Stored(dtype, PATTERNS).decode()
    finite = values[np.isfinite(values)]
    assert np.array_equal(encode(finite, dtype).decode(), finite)


@law
@given(doubles.filter(lambda value: abs(value) <= LARGEST["F32"]))
def test_float32_is_rounded_once(value: float) -> None:
    expected = struct.pack("<f", value)
    assert encode(np.array([value]), "F32").data == (bytes(4) if expected == b"\0\0\0\x80" else expected)


@law
@given(doubles.map(lambda value: value % 65504))
def test_float16_is_rounded_once(value: float) -> None:
    assert encode(np.array([value]), "F16").data == struct.pack("<e", value)


@law
@given(doubles.filter(lambda value: abs(value) <= LARGEST["BF16"]))
def test_bfloat16_is_rounded_once_from_float64(value: float) -> None:
    expected = nearest_bfloat16(value)
    assert abs(encode(np.array([value]), "BF16").decode()[0]) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(1 + 2**-8, 1.0, id="half way goes to the even one, down"),
        pytest.param(1 + 3 * 2**-8, 1 + 2**-6, id="half way goes to the even one, up"),
        pytest.param(1 + 2**-8 + 2**-40, 1 + 2**-7, id="a float64 just above half way is not rounded twice"),
        pytest.param(1 + 3 * 2**-8 - 2**-40, 1 + 2**-7, id="a float64 just below half way is not rounded twice"),
        pytest.param((1 + 3 * 2**-8 - 2**-40) / 4, (1 + 2**-7) / 4, id="nor is one that is smaller than 1"),
        pytest.param(-1 - 2**-8 - 2**-40, -1 - 2**-7, id="negative numbers round alike"),
        pytest.param(2**-134 + 2**-180, 2**-133, id="the smallest subnormal is reached from above its half"),
    ],
)
def test_bfloat16_ties_go_to_even_and_nothing_is_rounded_twice(value: float, expected: float) -> None:
    assert encode(np.array([value]), "BF16").decode()[0] == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_is_written_as_zero(dtype: Dtype) -> None:
    assert encode(np.array([-0.0]), dtype).data == bytes(ITEM_SIZE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_underflows_from_below_is_written_as_zero(dtype: Dtype) -> None:
    assert encode(np.array([-1e-60]), dtype).data == bytes(ITEM_SIZE[dtype])


def test_the_largest_values_are_the_last_before_infinity() -> None:
    largest = {"F32": b"\xff\xff\x7f\x7f", "F16": b"\xff\x7b", "BF16": b"\x7f\x7f"}
    assert {dtype: float(Stored(dtype, raw).decode()[0]) for dtype, raw in largest.items()} == {
        dtype: LARGEST[dtype] for dtype in DTYPES
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_value_survives(dtype: Dtype) -> None:
    assert encode(np.array([LARGEST[dtype]]), dtype).decode()[0] == np.float32(LARGEST[dtype])
