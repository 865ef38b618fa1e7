"""Fingerprint a weight: choose its basis dtype, round the weight to it, and hash it (spec, sections 6.1 and 6.2).

A weight is gone through in pieces that stay in the processor's cache, and hashed in its own format where it can be, so
that to identify it costs little more than SHA-256 over its bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES
from svdiff_delta.errors import BaseError
from svdiff_delta.format.dtypes import Dtype

LARGEST_LOSS: Final = 0.01
"""Relative Frobenius loss up to which float16 serves as basis dtype."""

PIECE: Final = 1 << 18
"""Numbers that are looked at together."""

PROBE: Final = 1 << 14
"""Numbers that are looked at first."""

SUM_ERROR: Final = 0.05
"""More than what float32 sums of `PIECE` squares can err, relative to the sum."""

SMALLEST_SUM: Final = 1e-20
"""Above it no square that matters was lost below float32's range."""

_BITS: Final[dict[torch.dtype, tuple[torch.dtype, str, int]]] = {
    torch.float16: (torch.int16, "<u2", 0x7C00),
    torch.bfloat16: (torch.int16, "<u2", 0x7F80),
    torch.float32: (torch.int32, "<u4", 0x7F80_0000),
    torch.float64: (torch.int64, "<u8", 0x7FF0_0000_0000_0000),
}
"""For each floating-point dtype: integers of its size for torch and for NumPy, and the bits of infinity."""

Bits = NDArray[np.unsignedinteger[Any]]


class Identity(NamedTuple):
    """The basis dtype of a weight, and the fingerprint of the weight rounded to it."""

    dtype: Dtype
    fingerprint: str


def fingerprint_stored(weight: Tensor, name: str, axis: int, dtype: Dtype | None = None) -> Identity:
    """Return basis dtype and fingerprint of a weight as it stands in the base.

    Args:
        weight: its values, unrounded.
        name: what to call it in errors.
        axis: the axis of output channels.
        dtype: the basis dtype that a file gives; None chooses it from the values, as a writer does.

    Raises:
        BaseError: the weight is not floating-point of 16 bits or more, or holds NaN or infinity.
    """
    check_dtype(weight, name)
    dtype = dtype or _choose(weight)
    digest, finite = _digest(weight, dtype, axis)
    if not finite:
        check_weight(weight.float(), name)
    return Identity(dtype, digest)


def choose_dtype(weight: Tensor, name: str) -> Dtype:
    """Return the basis dtype that a writer gives a weight, from its values alone (spec, section 6.1).

    Raises:
        BaseError: the weight is not floating-point of 16 bits or more, or holds NaN or infinity.
    """
    check_weight(weight, name)
    return _choose(weight)


def check_dtype(weight: Tensor, name: str) -> None:
    """Raise BaseError unless a weight is floating-point of 16 bits or more."""
    if weight.dtype not in _BITS:
        raise BaseError(
            f"{name}: its dtype {str(weight.dtype).removeprefix('torch.')} has no singular values to shift",
            fix="use the unquantized base",
        )


def check_weight(weight: Tensor, name: str) -> None:
    """Raise BaseError unless a weight is floating-point of 16 bits or more, and finite."""
    check_dtype(weight, name)
    if not all(_is_finite(_bits(piece), piece.dtype) for piece in _pieces(weight)):
        raise BaseError(f"{name}: the base's weight holds NaN or infinity", fix="fetch the base again")


def round_weight(weight: Tensor, dtype: Dtype) -> Tensor:
    """Round to the basis dtype and return the values as contiguous float32; −0 becomes +0."""
    wide = narrow(weight, dtype).to(torch.float32).contiguous()
    return wide + 0.0 if wide.data_ptr() == weight.data_ptr() else wide.add_(0.0)


def round_into(weight: Tensor, dtype: Dtype, out: Tensor) -> Tensor:
    """Do as `round_weight` into memory that is given, float32 and contiguous, in pieces that stay in the cache."""
    for piece, place in zip(_pieces(weight), out.view(-1).split(PIECE), strict=True):
        place.copy_(narrow(piece, dtype)).add_(0.0)
    return out


def fingerprint(rounded: Tensor, axis: int) -> str:
    """Return 22 characters that identify a rounded weight (spec, section 6.2).

    SHA-256 cut to 128 bits, over shape, axis and the values in the narrowest of F16, BF16 and F32 that holds them all.
    """
    return _digest(rounded, "F32", axis)[0]


def _choose(weight: Tensor) -> Dtype:
    """Return the basis dtype of a weight that is finite (of another, any)."""
    if _is_exact(weight, "F16"):
        return "F16"
    if _is_exact(weight, "BF16"):
        return "BF16"
    lost, square = 0.0, 0.0
    for piece in _pieces(weight):
        single = piece.float()
        error = narrow(piece, "F16").float() - single  # exact in float32
        lost += float(torch.dot(error, error))
        square += float(torch.dot(single, single))
        if not math.isfinite(lost):
            return "F32"  # an element is infinite in F16
    limit = LARGEST_LOSS**2 * square
    if square < SMALLEST_SUM or abs(lost - limit) <= SUM_ERROR * limit:
        lost, square = _sums(weight)
        limit = LARGEST_LOSS**2 * square
    return "F16" if lost <= limit else "F32"


def _sums(weight: Tensor) -> tuple[float, float]:
    """Return the squared norms of what rounding to F16 loses and of the weight, in float64."""
    lost, square = 0.0, 0.0
    for piece in _pieces(weight):
        wide = piece.double()
        lost += float((narrow(piece, "F16").double() - wide).square().sum())
        square += float(wide.square().sum())
    return lost, square


def narrow(values: Tensor, dtype: Dtype) -> Tensor:
    """Return values in the basis dtype; those of float64 are rounded to float32 before (spec, section 6.1)."""
    single = values.to(torch.float32) if values.dtype == torch.float64 else values  # first to F32, then on
    return single.to(TORCH_DTYPES[dtype])


def _is_exact(weight: Tensor, dtype: Dtype) -> bool:
    """Tell whether every element is exact in a dtype; the first piece with one that is not ends the search."""
    if weight.dtype == TORCH_DTYPES[dtype]:
        return True
    some = weight.detach().flatten()[:PROBE]  # of most weights that are not, hardly any element is
    return all(torch.equal(narrow(piece, dtype).to(piece.dtype), piece) for piece in (some, *_pieces(weight)))


def _digest(weight: Tensor, dtype: Dtype, axis: int) -> tuple[str, bool]:
    """Return the fingerprint of a weight rounded to `dtype`, and whether all of its values are then finite."""
    format_ = _narrowest(weight, dtype)
    shape = "x".join(map(str, weight.shape))
    digest, finite = hashlib.sha256(f"svdiff 1 {format_} {shape} {axis}\n".encode()), True
    for piece in _pieces(weight):
        rounded = narrow(narrow(piece, dtype), format_)
        bits = _bits(rounded)
        finite = finite and _is_finite(bits, rounded.dtype)
        digest.update(_without_negative_zero(bits).data)
    return base64.urlsafe_b64encode(digest.digest()[:16]).decode().rstrip("="), finite


def _narrowest(weight: Tensor, dtype: Dtype) -> Dtype:
    """Return the narrowest format that holds every value of a weight rounded to `dtype`."""
    shorter: tuple[Dtype, ...] = ("F16", "BF16")
    for candidate in shorter:
        if candidate == dtype:
            return candidate
        some = weight.detach().flatten()[:PROBE]
        if all(_is_exact(narrow(piece, dtype), candidate) for piece in (some, *_pieces(weight))):
            return candidate
    return "F32"


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Yield the values one after the other, the last index running fastest, on the CPU."""
    yield from values.detach().contiguous().flatten().cpu().split(PIECE)


def _bits(piece: Tensor) -> Bits:
    """Return numbers as unsigned little-endian integers."""
    integers, name, _ = _BITS[piece.dtype]
    bits: Bits = piece.view(integers).numpy().view(name)
    return bits


def _is_finite(bits: Bits, dtype: torch.dtype) -> bool:
    infinity = bits.dtype.type(_BITS[dtype][2])
    magnitude = bits & bits.dtype.type(~(1 << (8 * bits.itemsize - 1)) & (1 << 8 * bits.itemsize) - 1)
    return bool(magnitude.max(initial=0) < infinity)


def _without_negative_zero(bits: Bits) -> Bits:
    negative = bits == bits.dtype.type(1 << (8 * bits.itemsize - 1))
    if not negative.any():
        return bits
    bits = bits.copy()  # the base's own pages may not be written to
    np.copyto(bits, 0, where=negative)
    return bits
