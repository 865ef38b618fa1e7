"""Compute a layer that is one matrix product with the change that its square factor makes of its output."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .native_product import cast_lines, is_native, lines_of, native_layer, native_layer_back, unlined
from .watched_operations import plain
from .wide_product import exact, last, spectral_back, spectral_product, wide, wide_product


def layer_product(
    x: Tensor,
    weight: Tensor,
    square: Tensor,
    gain: Tensor,
    *,
    bias: Tensor | None,
    more: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return y + (y @ Fᵀ ⊙ gain) @ F + bias + more (…, K) with y = x @ weight.T, in the dtype of sums or rounded once.

    Args:
        x: (…, columns).
        weight: (K, columns).
        square: F, (K, K).
        gain: (K,), or (S, K) for samples in turn along the first dimension of x.
        bias: (K,); nothing if not given.
        more: (…, K) in the dtype of sums; nothing if not given.
        dtype: what the result may be rounded to.
    """
    whole = gain.ndim == 1 and x.dtype == weight.dtype == square.dtype and not weight.requires_grad
    if whole and is_native(weight) and not plain():
        result = _LayerProduct.apply(x, weight, square, gain, bias, more, dtype)  # type: ignore[no-untyped-call]
        return cast("Tensor", result)
    y = wide_product(x, weight)
    y = y + spectral_product(y, square, gain)
    y = y if bias is None else y + bias
    return y if more is None else y + more


class _LayerProduct(torch.autograd.Function):
    """All of it by the processor's own products, so that nothing of it is ever whole in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        square: Tensor,
        gain: Tensor,
        bias: Tensor | None,
        more: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.dtypes = [None if each is None else each.dtype for each in (bias, more)]
        with exact(x):
            result, hidden = native_layer(x, weight, square, gain, bias, more, dtype)
        ctx.save_for_backward(hidden if ctx.needs_input_grad[3] else None, weight, square, gain)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, square, gain = ctx.saved_tensors
        (grad,), again = grads, torch.is_grad_enabled()
        with exact(grad):
            back = _back if again else native_layer_back
            by_x, by_gain = back(grad, weight, square, gain, hidden, further=ctx.needs_input_grad[0])
        if by_gain is not None and again and not torch.compiler.is_compiling():
            by_gain = last(by_gain, gain)
        by_bias = by_more = None
        if ctx.needs_input_grad[4]:
            by_bias = grad.to(wide(weight.dtype)).sum([*range(grad.ndim - 1)]).to(ctx.dtypes[0])
        if ctx.needs_input_grad[5]:
            by_more = grad.to(ctx.dtypes[1])
        return by_x, None, None, by_gain, by_bias, by_more, None


def _back(
    grad: Tensor, weight: Tensor, square: Tensor, gain: Tensor, hidden: Tensor | None, *, further: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return what `native_layer_back` does, by operations that may be differentiated again."""
    back, by_gain = spectral_back(grad, square, gain, hidden, further=further)
    return (None if back is None else (grad.float() + back).to(weight.dtype) @ weight), by_gain


def cast_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T (…, rows) by a product in float32 of numbers in half precision, cast piece by piece.

    Args:
        x: (…, columns), of half precision or float32.
        weight: (rows, columns); what it is cast to is not kept.
    """
    return cast("Tensor", _CastProduct.apply(x, weight))  # type: ignore[no-untyped-call]


class _CastProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return unlined(cast_lines(lines_of(x), weight.float().T, torch.float32), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,), (grad,) = ctx.saved_tensors, grads
        with exact(grad):
            if torch.is_grad_enabled():
                return (grad @ weight.float()).to(ctx.dtype), None
            return unlined(cast_lines(lines_of(grad), weight.float(), ctx.dtype), grad), None
