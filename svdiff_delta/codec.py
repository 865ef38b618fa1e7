"""Number formats of tensors as NumPy sees them: F32, F16 and BF16 to and from little-endian bytes."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["F32", "F16", "BF16"]
"""A storable dtype, by its safetensors name."""

ITEM_SIZE: Final[dict[Dtype, int]] = {"F32": 4, "F16": 2, "BF16": 2}
DTYPES: Final[tuple[Dtype, ...]] = ("F32", "F16", "BF16")
LARGEST: Final[dict[Dtype, float]] = {"F32": 3.4028234663852886e38, "F16": 65504.0, "BF16": 3.3895313892515355e38}


def decode(raw: bytes | memoryview, dtype: Dtype) -> NDArray[np.float32]:
    """Return the values in `raw` as a new float32 array; every storable dtype converts exactly."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def encode(values: NDArray[np.floating], dtype: Dtype) -> bytes:
    """Round `values` once to `dtype` (to nearest, ties to even) and return little-endian bytes; −0 becomes +0.

    Float64 input is rounded in one step to F32 and F16. To BF16 it passes through float32 by rounding to odd, which
    gives the same result as one step.
    """
    if dtype == "F32":
        return (values.astype("<f4") + np.float32(0)).tobytes()  # −0 + 0 is +0
    if dtype == "F16":
        return (values.astype("<f2") + np.float16(0)).tobytes()
    bits = _round_to_odd(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return np.where(rounded == 0x8000, np.uint16(0), rounded).tobytes()


def round_to(values: NDArray[np.floating], dtype: Dtype) -> NDArray[np.float32]:
    """Round once to `dtype` and return the exact float32 equivalents."""
    return decode(encode(values, dtype), dtype)


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
