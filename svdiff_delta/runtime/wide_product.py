"""Multiply numbers in half precision with sums in float32: a change of a rounded output would be lost in its last bit.

Gradients are multiplied in the model's own dtype, as those of its own layers are, and summed in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import ceil, log2
from typing import Any, cast

import torch
from torch import Tensor

from svdiff_delta.errors import AttachError

from .factored_ops import HALF
from .per_sample import multiply
from .watched_operations import plain


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in HALF else dtype


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T (…, rows) in the dtype of sums.

    Args:
        x: (…, columns), of any dtype; it takes part as it is, or rounded to the weight's dtype on a GPU.
        weight: (rows, columns).
    """
    if plain():
        with exact(x):
            return _product(x, weight)
    return cast("Tensor", _WideProduct.apply(x, weight))  # type: ignore[no-untyped-call]


def spectral_product(x: Tensor, square: Tensor, gain: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return ((x − offset) @ Fᵀ ⊙ gain) @ F (…, K) in the dtype of sums, where F is a basis' square factor.

    With F = Uᵀ and x = Wᵀ-products y of a layer it is U (g ⊙ Uᵀ y); with F = Vᵀ, V (g ⊙ Vᵀ x).

    Args:
        x: (…, K).
        square: F, (K, K).
        gain: (K,), or (S, K) for samples in turn along the first dimension of x.
        offset: (K,), what is taken from x first, as a bias; nothing if not given.
    """
    if plain():
        return _spectral(x, square, gain, offset)[0]
    return cast("Tensor", _SpectralProduct.apply(x, square, gain, offset))  # type: ignore[no-untyped-call]


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        with exact(x):
            return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        with exact(grad):
            by_x = (grad @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
            by_weight = _lines(grad).T @ _lines(x).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return by_x, by_weight


class _SpectralProduct(torch.autograd.Function):
    """S(v), which is symmetric: its gradient by x is the same two products of the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, square: Tensor, gain: Tensor, offset: Tensor | None) -> Tensor:
        result, hidden = _spectral(x, square, gain, offset)
        ctx.dtype, ctx.offset = x.dtype, None if offset is None else offset.dtype
        # Products with gradients of half precision need no more of it than that.
        kept = (hidden * _room(square)).to(square.dtype) if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(kept, square, gain)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        hidden, square, gain = ctx.saved_tensors
        (grad,) = grads
        with exact(grad):
            turned = _product(grad, square)
            by_gain = _summed(turned * hidden, gain) / _room(square) if ctx.needs_input_grad[2] else None
            scaled = multiply(turned, gain, (square.shape[0],))
            back = _product(scaled, square.T) if ctx.needs_input_grad[0] or ctx.needs_input_grad[3] else scaled
        if by_gain is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            by_gain = _Last.apply(by_gain, gain)  # type: ignore[no-untyped-call]
        by_x = by_offset = None
        if back is not None and ctx.needs_input_grad[0]:
            by_x = back.to(ctx.dtype)
        if back is not None and ctx.needs_input_grad[3]:
            by_offset = -_lines(back).sum(0).to(ctx.offset)
        return by_x, None, by_gain, by_offset


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
    """Return the spectral product (…, K) and (x − offset) @ Fᵀ, what it is made of."""
    with exact(x):
        hidden = _product(x, square)
        if offset is not None:
            hidden = hidden - _product(offset[None], square)[0]
        return _product(multiply(hidden, gain, (square.shape[0],)), square.T), hidden


def _room(square: Tensor) -> float:
    """Return by which power of two x @ Fᵀ is multiplied where it is kept in F's dtype.

    Its entries are up to √K times as large as those of x, which may reach float16's largest.
    """
    return 2.0 ** -ceil(log2(square.shape[0]) / 2) if square.dtype == torch.float16 else 1.0


def _summed(products: Tensor, gain: Tensor) -> Tensor:
    """Return products (…, K) summed over all that has the same gain, (K,) or (S, K)."""
    if gain.ndim == 1:
        return _lines(products).sum(0).to(gain.dtype)
    by_sample: Tensor = products.unflatten(0, (-1, len(gain))).transpose(0, 1)
    return by_sample.flatten(1, -2).sum(1).to(gain.dtype)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T in the dtype of sums; torch's own products would round them to the weight's."""
    if x.is_cuda and weight.dtype in HALF and weight.shape[0] != weight.shape[1]:
        rounded = _lines(x).to(weight.dtype)
        return torch.mm(rounded, weight.T, out_dtype=torch.float32).reshape(*x.shape[:-1], -1)
    kept = torch.promote_types(wide(x.dtype), wide(weight.dtype))
    return x.to(kept) @ weight.to(kept).T


def _lines(x: Tensor) -> Tensor:
    """Return x (…, K) as one matrix."""
    return x.reshape(-1, x.shape[-1])


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype in which products are computed under autocast; None without it."""
    kind = x.device.type
    available = kind != "meta" and torch.amp.is_autocast_available(kind)
    return torch.get_autocast_dtype(kind) if available and torch.is_autocast_enabled(kind) else None


def exact(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast leaves products alone."""
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)
