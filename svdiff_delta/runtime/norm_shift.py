"""Compute the output of a normalization with w + δ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import has_own_forward, weight_of

from .factored_ops import HALF
from .gain_map import Response
from .layer_calls import forward_with
from .per_sample import multiply
from .shift import Shift

if TYPE_CHECKING:
    from .targets import TargetLayer


class NormShift(Shift):
    """A normalization with w + δ; in half precision δ is applied in float32 afterwards, or most of it would be lost."""

    def __init__(self, place: TargetLayer, module: nn.Module, *, trainable: bool) -> None:
        super().__init__(place, module, Response.of_shift(place.parameter.size), trainable=trainable)

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the norm's output with this gain, which is δ itself."""
        weight = weight_of(module)
        if gain.ndim == 1 and weight.dtype not in HALF:
            return forward_with(module, self.weight(module, gain), x, *args, **options)
        bias = cast("Tensor | None", getattr(module, "bias", None))
        shape = (len(weight), *[1] * (x.ndim - 2)) if isinstance(module, nn.GroupNorm) else tuple(weight.shape)
        if has_own_forward(module):
            # What one more unit of weight changes; some classes multiply by 1 + w. Never with a weight of 0 or in half
            # precision: of a weight of 0, kernels for norms cannot give gradients.
            wide, value = weight.float(), x.float() if x.is_floating_point() else x
            unit = forward_with(module, wide + 1, value, *args, **options)
            unit = unit - forward_with(module, wide, value, *args, **options)
            result = forward_with(module, weight, x, *args, **options)
            return (result.float() + multiply(unit.float(), gain, shape)).to(result.dtype)
        result = multiply(normalize(module, x).float(), weight.float().flatten() + gain, shape)
        return (result if bias is None else result + bias.float().reshape(shape)).to(x.dtype)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return w + δ."""
        weight = weight_of(module)
        return (weight + (gain if weight.ndim == 1 else gain.reshape(weight.shape))).to(weight.dtype)


def normalize(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a norm of torch computes without weight and bias, in float32 or the dtype of x."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, None, None, module.eps)
    # By its formula: on a GPU in half precision, torch's fused kernel gives gradients of 1e36 where the weight takes
    # none (torch 2.11; float32 and other norms are right).
    norm, wide = cast("nn.RMSNorm", module), x.float()
    dimensions = tuple(range(-len(norm.normalized_shape), 0))
    eps = torch.finfo(wide.dtype).eps if norm.eps is None else norm.eps
    return wide * torch.rsqrt(wide.square().mean(dimensions, keepdim=True) + eps)
