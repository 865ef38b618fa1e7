"""Multiply numbers in half precision with sums in float32: a change of a rounded output would be lost in its last bit.

Gradients are multiplied in the model's own dtype, as those of its own layers are, and summed in float32.

Products of bfloat16 that a processor has, and torch rounds, are in `native_product`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import ceil, log2
from typing import Any, cast

import torch
from torch import Tensor

from svdiff_delta.errors import AttachError

from .factored_ops import HALF
from .native_product import (
    is_native,
    lines_of,
    native_difference,
    native_product,
    native_spectral,
    native_spectral_back,
    native_sum,
    unlined,
)
from .per_sample import multiply
from .watched_operations import plain


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in HALF else dtype


def wide_product(
    x: Tensor,
    weight: Tensor,
    change: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return (x + change) @ weight.T + bias (…, rows), summed in the dtype of sums.

    Args:
        x: (…, columns), of any dtype; it takes part as it is, or rounded to the weight's dtype on a GPU.
        weight: (rows, columns).
        change: (…, columns), of the dtype of sums, small beside x, which its rounding would lose; nothing if not given.
        bias: (rows,), of any dtype; nothing if not given.
        dtype: what the result is rounded to, once; the dtype of sums if not given.
    """
    if plain():
        with exact(x):
            total = _wide_sum(x, weight, change)
            total = total if bias is None else total + bias
            return total if dtype is None else total.to(dtype)
    return cast("Tensor", _WideProduct.apply(x, weight, change, bias, dtype))  # type: ignore[no-untyped-call]


def spectral_product(x: Tensor, square: Tensor, gain: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return ((x − offset) @ Fᵀ ⊙ gain) @ F (…, K), where F is a basis' square factor.

    In the dtype of sums, but in F's where the processor's product has rounded it to that (`native_product`).

    With F = Uᵀ and x = Wᵀ-products y of a layer it is U (g ⊙ Uᵀ y); with F = Vᵀ, V (g ⊙ Vᵀ x).

    Args:
        x: (…, K).
        square: F, (K, K).
        gain: (K,), or (S, K) for samples in turn along the first dimension of x.
        offset: (K,), what is taken from x first, as a bias; nothing if not given.
    """
    if plain():
        with exact(x):
            return _spectral(x, square, gain, offset)[0]
    return cast("Tensor", _SpectralProduct.apply(x, square, gain, offset))  # type: ignore[no-untyped-call]


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, change: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        ctx.dtypes = [None if each is None else each.dtype for each in (x, change, bias)]
        kept = (x, change) if weight.requires_grad else (None, None)
        ctx.save_for_backward(weight, *kept)
        with exact(x):
            return _wide_sum(x, weight, change, bias, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, x, change = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        by_x = by_weight = by_change = by_bias = None
        with exact(grad):
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
                both = grad @ weight
                by_x = both.to(ctx.dtypes[0])
                by_change = None if ctx.dtypes[1] is None else both.to(ctx.dtypes[1])
            if ctx.needs_input_grad[1]:
                given = x if change is None else x + change
                by_weight = lines_of(grad).T @ lines_of(given).to(weight.dtype)
            if ctx.needs_input_grad[3]:
                by_bias = grads[0].to(wide(weight.dtype)).sum([*range(grads[0].ndim - 1)]).to(ctx.dtypes[2])
        return by_x, by_weight, by_change, by_bias, None


class _SpectralProduct(torch.autograd.Function):
    """S(v), which is symmetric: its gradient by x is the same two products of the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, square: Tensor, gain: Tensor, offset: Tensor | None) -> Tensor:
        ctx.dtype, ctx.offset = x.dtype, None if offset is None else offset.dtype
        ctx.native = is_native(square) and gain.ndim == 1 and x.dtype in (torch.float32, square.dtype)
        with exact(x):
            result, hidden = (native_spectral if ctx.native else _spectral)(x, square, gain, offset)
        # Products with gradients of half precision need no more of it than that.
        kept = _times(hidden, _room(square)).to(square.dtype) if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(kept, square, gain)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        hidden, square, gain = ctx.saved_tensors
        further = ctx.needs_input_grad[0] or ctx.needs_input_grad[3]
        again = torch.is_grad_enabled()
        back = native_spectral_back if ctx.native and not again else spectral_back
        with exact(grads[0]):
            turned, by_gain = back(grads[0], square, gain, hidden, further=further)
        if by_gain is not None and again and not torch.compiler.is_compiling():
            by_gain = last(by_gain, gain)
        by_x = by_offset = None
        if turned is not None and ctx.needs_input_grad[0]:
            by_x = turned.to(ctx.dtype)
        if turned is not None and ctx.needs_input_grad[3]:
            by_offset = -lines_of(turned).to(wide(turned.dtype)).sum(0).to(ctx.offset)
        return by_x, None, by_gain, by_offset


def last(gradient: Tensor, gain: Tensor) -> Tensor:
    """Return a gradient by a gain as it is; who differentiates that once more is refused."""
    return cast("Tensor", _Last.apply(gradient, gain))  # type: ignore[no-untyped-call]


class _Last(torch.autograd.Function):
    """A gradient that depends on more than was kept, so that its own would be wrong."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, gain: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        raise AttachError(
            "the gradient by δ was to be differentiated once more, and the resident form does not keep what that takes",
            fix='attach with `form="additive"`',
        )


def _spectral(x: Tensor, square: Tensor, gain: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the spectral product (…, K) and (x − offset) @ Fᵀ, what it is made of, in the dtype of sums."""
    square = _factor(x, square)
    hidden = _product(x, square) if offset is None else _difference(x, offset, square)
    return _rounded_product(multiply(hidden, gain, (square.shape[0],)), square.T), hidden


def spectral_back(
    grad: Tensor, square: Tensor, gain: Tensor, hidden: Tensor | None, *, further: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `_spectral` by x and by the gain; arguments as those of `native_spectral_back`.

    What was kept of (x − offset) @ Fᵀ is smaller by `_room`.
    """
    factor = _factor(grad, square)
    turned = _rounded_product(grad, factor)
    by_gain = None if hidden is None else _times(_summed(turned * hidden, gain), 1 / _room(square))
    if not further:
        return None, by_gain
    return _rounded_product(multiply(turned, gain, (square.shape[0],)), factor.T), by_gain


def _room(square: Tensor) -> float:
    """Return by which power of two x @ Fᵀ is multiplied where it is kept in F's dtype.

    Its entries are up to √K times as large as those of x, which may reach float16's largest.
    """
    return 2.0 ** -ceil(log2(square.shape[0]) / 2) if square.dtype == torch.float16 else 1.0


def _times(x: Tensor, factor: float) -> Tensor:
    """Return x times a power of two; x itself times 1, which would be a launch for each layer."""
    return x if factor == 1.0 else x * factor


def _summed(products: Tensor, gain: Tensor) -> Tensor:
    """Return products (…, K) summed over all that has the same gain, (K,) or (S, K)."""
    if gain.ndim == 1:
        return lines_of(products).sum(0).to(gain.dtype)
    by_sample: Tensor = products.unflatten(0, (-1, len(gain))).transpose(0, 1)
    return by_sample.flatten(1, -2).sum(1).to(gain.dtype)


def _wide_sum(
    x: Tensor,
    weight: Tensor,
    change: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return (x + change) @ weight.T + bias in a dtype, rounded once; in the dtype of sums if none is given."""
    if is_native(weight) and x.dtype == weight.dtype:
        return native_sum(x, weight, change, bias, dtype)
    if change is None:
        total = _product(x, weight)
    else:
        kept = wide(change.dtype)
        both = _product(torch.stack([x.to(kept), change.to(kept)]), weight)  # W is read once
        total = both[0] + both[1]
    total = total if bias is None else total + bias
    return total if dtype is None else total.to(dtype)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T in the dtype of sums; torch's own products would round them to the weight's."""
    if is_native(weight) and x.dtype in (torch.float32, weight.dtype):
        return native_product(x, weight).float()
    if x.is_cuda and weight.dtype in HALF and weight.shape[0] != weight.shape[1]:
        rounded = lines_of(x).to(weight.dtype)
        return unlined(torch.mm(rounded, weight.T, out_dtype=torch.float32), x)
    kept = _sums(x, weight)
    return x.to(kept) @ weight.to(kept).T


def _sums(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of sums of a product."""
    kept, other = wide(x.dtype), wide(weight.dtype)
    return kept if kept == other else torch.promote_types(kept, other)  # asking torch is an operation too


def _factor(x: Tensor, square: Tensor) -> Tensor:
    """Return a square factor as products with x need it: cast to the dtype of their sums once for all of them."""
    return square if is_native(square) else square.to(_sums(x, square))


def _difference(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Return (x − offset) @ weight.T in the dtype of sums; the offset (columns,) may be much larger than the rest."""
    if is_native(weight) and x.dtype in (torch.float32, weight.dtype):
        found, less = native_difference(x, offset, weight)
        return unlined(found.float() if less is None else found - less, x)
    return _product(x, weight) - _product(offset[None], weight)[0]


def _rounded_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T in the dtype of sums, where x may be rounded first, as a gradient or a small change may."""
    return _product(x.to(weight.dtype) if is_native(weight) and x.dtype == torch.float32 else x, weight)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype in which products are computed under autocast; None without it."""
    kind = x.device.type
    available = kind != "meta" and torch.amp.is_autocast_available(kind)
    return torch.get_autocast_dtype(kind) if available and torch.is_autocast_enabled(kind) else None


def exact(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast leaves products alone."""
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)
