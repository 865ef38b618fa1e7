"""Train the gains between two factors of a linear layer in as few operations as that takes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .watched_operations import plain
from .wide_product import autocast_dtype


def is_trained(x: Tensor, inner: Tensor, gain: Tensor) -> bool:
    """Tell whether `factored_product` is for this: gains of all samples that take gradients, all of one dtype."""
    return (
        gain.requires_grad
        and torch.is_grad_enabled()
        and gain.ndim == 1
        and x.dtype == inner.dtype == gain.dtype
        and autocast_dtype(x) is None
        and not (plain() or torch.compiler.is_compiling() or forward_ad._current_level >= 0)
    )


def factored_product(x: Tensor, inner: Tensor, outer: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Return ((x @ innerᵀ) ⊙ gain) @ outerᵀ + bias (…, rows), as two linear layers give it.

    Torch's own functions would take views of every input and every gradient: each is a call of the host, for each
    layer, there and back.

    Args:
        x: (…, columns).
        inner: (R, columns); no gradient goes there.
        outer: (rows, R); likewise.
        gain: (R,).
        bias: (rows,), or None.
    """
    return cast("Tensor", _FactoredProduct.apply(x, inner, outer, gain, bias)[0])  # type: ignore[no-untyped-call]


class _FactoredProduct(torch.autograd.Function):
    """Products of two factors whose value between is an output too: gradients can be differentiated once more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, inner: Tensor, outer: Tensor, gain: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden = _lines(x) @ inner.T
        scaled = hidden * gain
        found = scaled @ outer.T if bias is None else torch.addmm(bias, scaled, outer.T)
        ctx.save_for_backward(hidden, inner, outer, gain)
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        return _unlined(found, x.shape), hidden

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, inner, outer, gain = ctx.saved_tensors
        grad, between = grads
        by_hidden = by_gain = by_bias = None
        if grad is not None:
            given = _lines(grad)
            turned = given @ outer
            by_gain = (turned * hidden).sum(0)
            by_hidden = turned * gain
            by_bias = given.sum(0) if ctx.needs_input_grad[4] else None
        if between is not None:
            by_hidden = between if by_hidden is None else by_hidden + between
        by_x = None
        if ctx.needs_input_grad[0] and by_hidden is not None:
            by_x = _unlined(by_hidden @ inner, ctx.shape)
        return by_x, None, None, by_gain, by_bias


def _lines(x: Tensor) -> Tensor:
    """Return x (…, K) as one matrix."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _unlined(lines: Tensor, shape: torch.Size) -> Tensor:
    """Return a matrix in the shape (…, K) that another had."""
    return lines if len(shape) == 2 else lines.reshape(*shape[:-1], lines.shape[-1])
