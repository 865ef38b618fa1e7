"""Let gradients pass through the own forward of a quantized layer without keeping its dequantized weight.

The forward is linear in its input, so its gradient is a product with the weight, which is dequantized again for it.
What torch records of a forward that dequantizes by itself would hold that weight until the backward: as many bytes as
the model has unquantized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from svdiff_delta.runtime import factored_ops

from . import plain_weight

Map = Callable[[Tensor, Tensor | None], Tensor]
"""A layer's own forward, as a function of its input and of a change of it, which counts without the bias."""

Bare = Callable[[Tensor, Tensor], Tensor]
"""What that computes with an ordinary weight and without a bias, of weight and input."""


def linear_output(
    module: nn.Module, own: Map, bare: Bare, x: Tensor, change: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return what a quantized layer computes; gradients pass to its input, to a change of that, and to its bias.

    Args:
        module: the layer.
        own: its own forward.
        bare: the same with an ordinary weight and without its bias.
        x: its input.
        change: what is added to that beside the bias; nothing if not given.
        bias: what its forward adds; None if nothing.
    """
    return cast("Tensor", _OwnOutput.apply(x, change, bias, module, own, bare))  # type: ignore[no-untyped-call]


class _OwnOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        change: Tensor | None,
        bias: Tensor | None,  # noqa: ARG004
        module: nn.Module,
        own: Map,
        bare: Bare,
    ) -> Tensor:
        ctx.module, ctx.bare, ctx.shape = module, bare, x.shape
        ctx.dtypes = x.dtype, None if change is None else change.dtype
        return own(x, change)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), module = grads, ctx.module
        by_x = by_change = by_bias = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            weight = plain_weight(module).to(grad.dtype)
            both = grad @ weight if isinstance(module, nn.Linear) else _turned(ctx, weight, grad)
            by_x = both.to(ctx.dtypes[0])
            by_change = None if ctx.dtypes[1] is None else both.to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            by_bias = factored_ops.channels_last(module, grad).flatten(0, -2).sum(0)
        return by_x, by_change, by_bias, None, None, None


def _turned(ctx: Any, weight: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient by the input of a convolution, whatever its padding: that of the same one at zeros."""
    with torch.enable_grad():
        x = grad.new_zeros(ctx.shape, requires_grad=True)
        (found,) = torch.autograd.grad(ctx.bare(weight, x), x, grad)
    return found
