"""Multiply bfloat16 by what a processor has for it: several times as fast as in float32, but torch rounds the results.

So a sum that must not be rounded is computed as what it is rounded to, and as what was lost by that. All else that is
done to such matrices is done piece by piece, in memory that stays in the processor's cache: whole ones in float32 would
be several times what a layer keeps, and new memory is most of what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Final

import torch
from torch import Tensor

PIECE: Final = 1 << 18
"""Numbers that are computed with together."""

LARGE: Final = 1 << 21
"""Numbers that are multiplied in float32 together: fewer would keep the processor waiting."""

COLUMNS: Final = 64
"""Columns that are summed together, or a multiple of them."""


def _ask() -> bool:
    # Torch has no public question for it; a version that lacks these two multiplies in float32.
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)


HAS_BFLOAT16: Final = _ask()
"""Whether the processor multiplies bfloat16: asked once here, since the compiler would trace the question."""


def is_native(weight: Tensor) -> bool:
    """Tell whether the processor multiplies a weight's numbers as they are, and torch gives no sums of them."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and _has_bfloat16()


def _has_bfloat16() -> bool:
    return HAS_BFLOAT16


def lines_of(x: Tensor) -> Tensor:
    """Return x (…, K) as one matrix."""
    return x.reshape(-1, x.shape[-1])


def unlined(lines: Tensor, like: Tensor) -> Tensor:
    """Return a matrix with the first dimensions of another tensor."""
    return lines.reshape(*like.shape[:-1], -1)


def native_sum(
    x: Tensor, weight: Tensor, change: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """Return (x + change) @ weight.T + bias (…, rows), summed in float32 and rounded to a dtype if one is given.

    Args:
        x: (…, columns) bfloat16, as the weight.
        weight: (rows, columns).
        change: (…, columns), of any dtype; nothing if not given.
        bias: (rows,); nothing if not given.
        dtype: of the result; float32 if not given.
    """
    lines = lines_of(x)
    high = lines @ weight.T
    parts = [torch.addmm(high, lines, weight.T, beta=-1)]  # what `high` has lost: it is summed before it is rounded
    if change is not None:
        parts.append(lines_of(change).to(weight.dtype) @ weight.T)
    return unlined(_total(high, *parts, bias) if dtype is None else _rounded_total(dtype, bias, high, *parts), x)


def _rounded_total(dtype: torch.dtype, bias: Tensor | None, first: Tensor, *others: Tensor) -> Tensor:
    """Return the sum of matrices, and of a bias after the third of them, rounded once; the first may be written to."""
    result = first if first.dtype == dtype else torch.empty_like(first, dtype=dtype)
    for place, *parts in _pieces(result, first, *others):
        place.copy_(_total(*parts[:3], bias, *parts[3:]))
    return result


def _total(first: Tensor, *others: Tensor | None) -> Tensor:
    total = first.float()
    for each in others:
        if each is not None:
            total += each
    return total


def native_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T (…, rows) in bfloat16; x takes part whole where it is float32, and is bfloat16 otherwise."""
    lines = lines_of(x)
    if x.dtype == weight.dtype:
        return unlined(lines @ weight.T, x)
    high = lines.to(weight.dtype)
    low = torch.empty_like(high)
    for place, part, rounded in _pieces(low, lines, high):
        place.copy_(part - rounded)
    return unlined(torch.addmm(low @ weight.T, high, weight.T), x)


def native_difference(x: Tensor, offset: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return matrix and vector (rows,) whose difference in float32 is (x − offset) @ weight.T; None for a vector of 0.

    The offset (columns,) may be much larger than what is left. The matrix is bfloat16.
    """
    if x.dtype != weight.dtype:
        return native_product(x - offset, weight), None
    taken = native_sum(offset[None], weight, None, None, None)[0]
    high = taken.to(weight.dtype)
    return torch.addmm(high, lines_of(x), weight.T, beta=-1), taken - high


def native_spectral(x: Tensor, square: Tensor, gain: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ((x − offset) @ Fᵀ ⊙ gain) @ F and (x − offset) @ Fᵀ, both (…, K) and rounded to bfloat16.

    Args:
        x: (…, K), float32 or bfloat16.
        square: F, (K, K) bfloat16.
        gain: (K,) float32.
        offset: (K,), of the dtype of x; nothing if not given.
    """
    hidden, less = (native_product(x, square), None) if offset is None else native_difference(x, offset, square)
    hidden = lines_of(hidden)
    return unlined(_changed(hidden, less, square, gain), x), unlined(hidden, x)


def _changed(hidden: Tensor, less: Tensor | None, square: Tensor, gain: Tensor) -> Tensor:
    """Return ((hidden − less) ⊙ gain) @ F; what is hidden (P, K) becomes hidden − less, rounded."""
    scaled = torch.empty_like(hidden)
    for place, part in _pieces(scaled, hidden):
        single = part.float() if less is None else part - less
        if less is not None:
            part.copy_(single)
        place.copy_(single.mul_(gain))
    return scaled @ square


def native_layer(
    x: Tensor,
    weight: Tensor,
    square: Tensor,
    gain: Tensor,
    bias: Tensor | None,
    more: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return y + (y @ Fᵀ ⊙ gain) @ F + bias + more with y = x @ weight.T, rounded once, and y @ Fᵀ; both (…, K).

    Args:
        x: (…, columns) bfloat16.
        weight: (K, columns) bfloat16.
        square: F, (K, K) bfloat16.
        gain: (K,) float32.
        bias: (K,); nothing if not given.
        more: (…, K) float32; nothing if not given.
        dtype: of the sum.
    """
    lines = lines_of(x)
    high = lines @ weight.T
    low = torch.addmm(high, lines, weight.T, beta=-1)  # both are y, summed before it is rounded
    first, rest = torch.empty_like(high), torch.empty_like(high)
    for rounded, lost, *parts in _pieces(first, rest, high, low):
        y = _total(*parts)
        rounded.copy_(y)
        lost.copy_(y.sub_(rounded))
    hidden = torch.addmm(rest @ square.T, first, square.T)
    del first, rest
    others = [low, _changed(hidden, None, square, gain), *([] if more is None else [lines_of(more)])]
    return unlined(_rounded_total(dtype, bias, high, *others), x), unlined(hidden, x)


def native_layer_back(
    grad: Tensor, weight: Tensor, square: Tensor, gain: Tensor, hidden: Tensor | None, *, further: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `native_layer` by x, in bfloat16, and by the gain; arguments as `native_spectral_back`.

    Args:
        grad: (…, K) what has come.
        weight: (K, columns).
        square: F, (K, K).
        gain: (K,).
        hidden: y @ Fᵀ (…, K); None if the gain needs no gradient.
        further: whether x needs one.
    """
    back, by_gain = native_spectral_back(grad, square, gain, hidden, further=further)
    if back is None:
        return None, by_gain
    both = lines_of(back)
    for part, direct in _pieces(both, lines_of(grad)):
        part.copy_(direct.float() + part)
    return unlined(both @ weight, grad), by_gain


def native_spectral_back(
    grad: Tensor, square: Tensor, gain: Tensor, hidden: Tensor | None, *, further: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `native_spectral` by x (…, K), in bfloat16, and by the gain (K,).

    Args:
        grad: (…, K) what has come; it is rounded to bfloat16.
        square: F, (K, K).
        gain: (K,).
        hidden: (x − offset) @ Fᵀ (…, K); None if the gain needs no gradient.
        further: whether x needs one.
    """
    turned = lines_of(grad).to(square.dtype) @ square.T
    by_gain = None if hidden is None else _product_sums(turned, lines_of(hidden))
    if not further:
        return None, by_gain
    for (part,) in _pieces(turned):
        part.copy_(part * gain)
    return unlined(turned @ square, grad), by_gain


def cast_lines(lines: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return lines @ matrix (P, N) by products in float32, in a dtype; no more than a piece of either is cast at once.

    Args:
        lines: (P, K), of any dtype.
        matrix: (K, N) float32.
        dtype: of the result.
    """
    result = torch.empty(len(lines), matrix.shape[1], dtype=dtype)
    count = ceil(len(lines) * max(matrix.shape) / LARGE) or 1  # of one size: the product of a few lines is another one
    for place, part in zip(result.tensor_split(count), lines.tensor_split(count), strict=True):
        place.copy_(part.float() @ matrix)
    return result


def _product_sums(one: Tensor, other: Tensor) -> Tensor:
    """Return the float32 sums (K,) of products of two bfloat16 matrices (P, K) over all lines."""
    width = max(1, PIECE // (COLUMNS * max(1, len(one)))) * COLUMNS
    if one.shape[1] < 2 * width:
        return (one.float() * other).sum(0)
    sums = torch.empty(one.shape[1])
    ends = [*range(width, len(sums) - width + 1, width)]  # the last ones are more, not fewer: few are summed otherwise
    parts = (each.tensor_split(ends, -1) for each in (sums, one, other))
    for place, left, right in zip(*parts, strict=True):
        place.copy_((left.float() * right).sum(0))
    return sums


def _pieces(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matrices of one shape in the same lines."""
    lines = max(1, PIECE // max(1, matrices[0].shape[1]))
    if len(matrices[0]) <= lines:
        return iter([matrices])
    return zip(*(each.split(lines) for each in matrices), strict=True)
