"""Number formats of stored δ: F32, F16, BF16 and block-scaled I8, to and from bytes (spec, section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["F32", "F16", "BF16"]
"""A floating-point dtype, by its safetensors name: what weights are rounded to, and δ may be stored in."""

StoredDtype = Literal["F32", "F16", "BF16", "I8"]
"""A dtype that δ may be stored in."""

Raw = bytes | memoryview

DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)
STORED_DTYPES: Final[tuple[StoredDtype, ...]] = get_args(StoredDtype)

FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""The floating-point dtypes of weights, of 16 bits or more: those that have singular values (spec, section 6.1)."""

VARIANT_DTYPES: Final[Mapping[str, Dtype]] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
"""The number formats that variants of models, and ways of training in mixed precision, are named for."""

BLOCK: Final = 64
"""Values of an I8 tensor that share a scale."""

STEPS: Final = 127
"""I8 counts from −127 to 127 in units of the block's scale."""

LARGEST: Final[dict[StoredDtype, float]] = {
    "F32": 3.4028234663852886e38,
    "F16": 65504.0,
    "BF16": 3.3895313892515355e38,
    "I8": STEPS * 65504.0,
}


_SIGN: Final[dict[StoredDtype, tuple[str, int]]] = {
    "F32": ("<u4", 1 << 31),
    "F16": ("<u2", 1 << 15),
    "BF16": ("<u2", 1 << 15),
}
"""The integers that the floating-point dtypes are read as to look for −0, and −0 itself."""


class Stored(NamedTuple):
    """One δ as it stands in a file: `scales` are the F16 scales of its blocks if it is I8, else empty."""

    dtype: StoredDtype
    data: Raw
    scales: Raw = b""

    def owned(self) -> Stored:
        """Return the same with bytes of its own, in the place of a view of a file's."""
        return Stored(self.dtype, bytes(self.data), bytes(self.scales))

    def decode(self) -> NDArray[np.float32]:
        """Return the values as a new float32 array; every stored dtype converts exactly.

        I8 data that no writer makes (a count of −128, a scale that is negative or not finite) gives NaN.
        """
        if self.dtype == "F32":
            return np.frombuffer(self.data, "<f4").astype(np.float32)
        if self.dtype == "F16":
            return np.frombuffer(self.data, "<f2").astype(np.float32)
        if self.dtype == "BF16":
            return (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        counts = np.frombuffer(self.data, np.int8)
        scales = np.frombuffer(self.scales, "<f2").astype(np.float32)
        if (counts < -STEPS).any() or not (np.isfinite(scales) & (scales >= 0)).all():  # -128 has no opposite
            return np.full(counts.size, np.nan, np.float32)
        return counts.astype(np.float32) * np.repeat(scales, BLOCK)[: counts.size]


def without_negative_zero(stored: Stored) -> Stored:
    """Return the same values with +0 in the place of each −0; I8 has none."""
    if stored.dtype == "I8":
        return stored
    integer, negative = _SIGN[stored.dtype]
    bits = np.frombuffer(stored.data, integer)
    if not (bits == negative).any():
        return stored
    return stored._replace(data=np.where(bits == negative, 0, bits).astype(integer).tobytes())


def is_dtype(name: str) -> TypeGuard[Dtype]:
    """Tell whether a name is that of a floating-point dtype."""
    return name in DTYPES


def is_stored_dtype(name: str) -> TypeGuard[StoredDtype]:
    """Tell whether a name is that of a dtype that δ may be stored in."""
    return name in STORED_DTYPES


def blocks(count: int) -> int:
    """Return how many scales an I8 tensor of `count` values has."""
    return -(-count // BLOCK)


def encode(values: NDArray[np.floating], dtype: StoredDtype) -> Stored:
    """Round `values` once (to nearest, ties to even) to `dtype`; −0 becomes +0.

    Float64 input is rounded in one step to F32 and F16. To BF16 it passes through float32 by rounding to odd, which
    gives the same result as one step. To I8 each block is counted in units of its scale, the smallest F16 number that
    is at least 1/127 of the block's largest magnitude.
    """
    if dtype == "F32":
        return Stored(dtype, (values.astype("<f4") + np.float32(0)).tobytes())  # −0 + 0 is +0
    if dtype == "F16":
        return Stored(dtype, (values.astype("<f2") + np.float16(0)).tobytes())
    if dtype == "I8":
        return _quantize(values.astype(np.float64))
    bits = _round_to_odd(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return Stored(dtype, np.where(rounded == 0x8000, np.uint16(0), rounded).astype("<u2").tobytes())


def _quantize(values: NDArray[np.float64]) -> Stored:
    padded = np.zeros(blocks(values.size) * BLOCK)
    padded[: values.size] = values
    grid = padded.reshape(-1, BLOCK)
    wanted = np.abs(grid).max(axis=1, initial=0.0) / STEPS
    scales = wanted.astype(np.float16)
    short = scales.astype(np.float64) < wanted
    scales[short] = np.nextafter(scales[short], np.float16(np.inf))
    units = scales.astype(np.float64)[:, None]
    counts = np.rint(np.divide(grid, units, out=np.zeros_like(grid), where=units != 0))
    return Stored("I8", counts.astype(np.int8).ravel()[: values.size].tobytes(), scales.astype("<f2").tobytes())


def _round_to_odd(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Truncate to float32 and set the last bit where something was cut off, so that a second rounding is exact."""
    single = values.astype(np.float32)
    if values.dtype == np.float32:
        return single
    back = single.astype(np.float64)
    truncated = np.where(np.abs(back) > np.abs(values), np.nextafter(single, np.float32(0.0)), single)
    inexact = truncated.astype(np.float64) != values
    bits: NDArray[np.uint32] = truncated.astype(np.float32).view(np.uint32) | inexact.astype(np.uint32)
    return bits.view(np.float32)
