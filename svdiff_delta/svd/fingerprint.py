"""Fingerprint a weight: choose its basis dtype, round the weight to it, and hash it (spec, sections 6.1 and 6.2).

A weight is gone through in pieces that stay in the processor's cache, and hashed in its own format where it can be, so
that to identify it costs little more than SHA-256 over what is hashed. Whoever waits for it may give up after any piece
(`check_stopped`).
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

from svdiff_delta._util.parallel import check_stopped
from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES
from svdiff_delta.errors import BaseError
from svdiff_delta.format.dtypes import Dtype

LARGEST_LOSS: Final = 0.01
"""Relative Frobenius loss up to which float16 serves as basis dtype."""

MEAN_SQUARE: Final = 2.0**-34
"""Mean square of the elements from which on float16 loses less than that, unless an element is infinite in it.

To round w errs by at most 2⁻¹¹ |w|, or by 2⁻²⁵ where |w| < 2⁻¹⁴. Twice as much leaves room for a rounding to float32
before: Σ error² ≤ 2⁻²⁰ Σ w² + 2⁻⁴⁸ n, which is less than 0.01² Σ w² where Σ w² / n > 3.6·10⁻¹¹. This is 1.6 times that.
"""

PIECE: Final = 1 << 19
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
    values = _flat(weight)
    found = dtype or _choose(values)
    digest, finite = _digest(values, weight.shape, found, axis, whole=dtype is not None)
    if not finite and dtype is None:  # an element is infinite in F16
        found = "F32"
        digest, finite = _digest(values, weight.shape, found, axis, whole=False)
    if not finite:
        _check_finite(values, torch.float32, name)
    return Identity(found, digest)


def choose_dtype(weight: Tensor, name: str) -> Dtype:
    """Return the basis dtype that a writer gives a weight, from its values alone (spec, section 6.1).

    Raises:
        BaseError: the weight is not floating-point of 16 bits or more, or holds NaN or infinity.
    """
    check_weight(weight, name)
    values = _flat(weight)
    chosen = _choose(values)
    if chosen == "F16" and not _all_finite(values, torch.float16):
        return "F32"
    return chosen


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
    _check_finite(_flat(weight), weight.dtype, name)


def _check_finite(values: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raise BaseError unless values (n,) are finite in a dtype."""
    if not _all_finite(values, dtype):
        raise BaseError(f"{name}: the base's weight holds NaN or infinity", fix="fetch the base again")


def round_weight(weight: Tensor, dtype: Dtype) -> Tensor:
    """Round to the basis dtype and return the values as contiguous float32; −0 becomes +0."""
    wide = narrow(weight, dtype).to(torch.float32).contiguous()
    return wide + 0.0 if wide.data_ptr() == weight.data_ptr() else wide.add_(0.0)


def round_into(weight: Tensor, dtype: Dtype, out: Tensor) -> Tensor:
    """Do as `round_weight` into memory that is given, float32 and contiguous, in pieces that stay in the cache."""
    for piece, place in zip(_flat(weight).split(PIECE), out.view(-1).split(PIECE), strict=True):
        place.copy_(narrow(piece, dtype)).add_(0.0)
    return out


def fingerprint(rounded: Tensor, axis: int) -> str:
    """Return 22 characters that identify a rounded weight (spec, section 6.2).

    SHA-256 cut to 128 bits, over shape, axis and the values in the narrowest of F16, BF16 and F32 that holds them all.
    """
    return _digest(_flat(rounded), rounded.shape, "F32", axis)[0]


def _choose(values: Tensor) -> Dtype:
    """Return the basis dtype of values (n,) that are finite (of others, any).

    F16 may be returned where an element is infinite in it: such values get F32.
    """
    if values.dtype == torch.float16:
        return "F16"
    if _is_exact(values, torch.bfloat16, values.dtype):
        return "F16" if _is_exact(values, torch.float16, values.dtype) else "BF16"
    needed = MEAN_SQUARE * values.numel()
    if _square(values[:PROBE]) >= needed:  # as of most weights, also of those that are exact in F16
        return "F16"
    lost, square = 0.0, 0.0
    for rounded, piece in zip(_rounded(values, torch.float16, torch.float32), values.split(PIECE), strict=True):
        single = piece.float()
        square += _square(single)
        if square >= needed:
            return "F16"
        lost += _square(rounded.sub_(single))  # exact in float32
        if not math.isfinite(lost):
            return "F32"  # an element is infinite in F16
    limit = LARGEST_LOSS**2 * square
    if square < SMALLEST_SUM or abs(lost - limit) <= SUM_ERROR * limit:
        lost, square = _sums(values)
        limit = LARGEST_LOSS**2 * square
    return "F16" if lost <= limit else "F32"


def _square(piece: Tensor) -> float:
    single = piece.float()
    return float(torch.dot(single, single))


def _sums(values: Tensor) -> tuple[float, float]:
    """Return the squared norms of what rounding to F16 loses and of the values, in float64."""
    lost, square = 0.0, 0.0
    for rounded, piece in zip(_rounded(values, torch.float16, torch.float64), values.split(PIECE), strict=True):
        wide = piece.double()
        lost += float(rounded.sub_(wide).square_().sum())
        square += float(wide.square().sum())
    return lost, square


def narrow(values: Tensor, dtype: Dtype) -> Tensor:
    """Return values in the basis dtype; those of float64 are rounded to float32 before (spec, section 6.1)."""
    single = values.to(torch.float32) if values.dtype == torch.float64 else values  # first to F32, then on
    return single.to(TORCH_DTYPES[dtype])


def _is_exact(values: Tensor, dtype: torch.dtype, within: torch.dtype) -> bool:
    """Tell whether every element, rounded to `within`, is exact in a dtype; a piece with one that is not ends it."""
    if within == dtype:
        return True
    return all(  # of most weights that are not, hardly any element is
        all(map(_equal, _rounded(part, within), _rounded(part, within, dtype, within)))
        for part in (values[:PROBE], values)
    )


def _digest(values: Tensor, shape: torch.Size, dtype: Dtype, axis: int, *, whole: bool = True) -> tuple[str, bool]:
    """Return the fingerprint of a weight rounded to `dtype`, and whether all of its values are then finite.

    Args:
        values: the weight's, (n,).
        shape: the weight's.
        dtype: the basis dtype.
        axis: the axis of output channels.
        whole: whether to go on where a value is not finite.
    """
    basis, format_ = TORCH_DTYPES[dtype], _narrowest(values, dtype)
    sides = "x".join(map(str, shape))
    digest, finite = hashlib.sha256(f"svdiff 1 {format_} {sides} {axis}\n".encode()), True
    infinity = _BITS[TORCH_DTYPES[format_]][2]
    for piece in _rounded(values, basis, TORCH_DTYPES[format_]):
        bits = _bits(piece)
        finite = finite and _is_finite(bits, infinity)
        if not (finite or whole):
            return "", False
        digest.update(_without_negative_zero(bits).data)
    return base64.urlsafe_b64encode(digest.digest()[:16]).decode().rstrip("="), finite


def _narrowest(values: Tensor, dtype: Dtype) -> Dtype:
    """Return the narrowest format that holds every value of a weight rounded to `dtype`."""
    shorter: tuple[Dtype, ...] = ("F16", "BF16")
    for candidate in shorter:
        if _is_exact(values, TORCH_DTYPES[candidate], TORCH_DTYPES[dtype]):
            return candidate
    return "F32"


def _flat(weight: Tensor) -> Tensor:
    """Return the values (n,), the last index running fastest, on the CPU."""
    return weight.detach().contiguous().flatten().cpu()


def _rounded(values: Tensor, *dtypes: torch.dtype) -> Iterator[Tensor]:
    """Yield values (n,) piece by piece, rounded to one dtype after the other.

    A piece that had to be rounded lies in memory that the next one is rounded into; another is the values' own.
    """
    room = min(PIECE, values.numel())
    steps = [torch.empty(room, dtype=dtype, device="cpu") for dtype in _steps(values.dtype, dtypes)]
    for piece in values.split(PIECE):
        check_stopped()
        rounded = piece
        for step in steps:
            # Every operation lets other threads take their turn, and waits for its own: so there are as few as can be.
            rounded = (step if len(piece) == room else step[: len(piece)]).copy_(rounded)
        yield rounded


def _steps(stored: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> list[torch.dtype]:
    """Return the dtypes to which to round one after the other; float64 goes to float32 first (spec, section 6.1)."""
    steps = [stored]
    for dtype in dtypes:
        if steps[-1] == torch.float64 != dtype:
            steps.append(torch.float32)
        if steps[-1] != dtype:
            steps.append(dtype)
    return steps[1:]


def _bits(piece: Tensor) -> Bits:
    """Return numbers as unsigned little-endian integers."""
    integers, name, _ = _BITS[piece.dtype]
    bits: Bits = piece.view(integers).numpy().view(name)
    return bits


def _equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two pieces hold the same numbers, −0 and +0 told apart."""
    return bool((_bits(one) == _bits(other)).all())


def _all_finite(values: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether values (n,) are finite in a dtype."""
    return all(_is_finite(_bits(piece), _BITS[dtype][2]) for piece in _rounded(values, dtype))


def _is_finite(bits: Bits, infinity: int) -> bool:
    """Tell whether no number is infinite or NaN: as integers, those are the largest of either sign."""
    sign = 1 << (8 * bits.itemsize - 1)
    positive = bits.view(f"<i{bits.itemsize}").max(initial=0)
    return bool(positive < infinity and bits.max(initial=0) < sign + infinity)


def _without_negative_zero(bits: Bits) -> Bits:
    """Return the numbers with +0 for −0, which is the least integer with a sign; copied only where there is one."""
    sign = 1 << (8 * bits.itemsize - 1)
    if bits.view(f"<i{bits.itemsize}").min(initial=0) > -sign:
        return bits
    others = bits != bits.dtype.type(sign)
    product: Bits = bits * others.view(np.uint8)  # where there are many, filling by a mask takes fifty times as long
    return product
