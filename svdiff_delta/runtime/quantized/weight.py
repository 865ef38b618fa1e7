"""Say how a quantized layer stores its weight, and how far its scheme's rounding may have moved that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def as_it_is(weight: Tensor) -> Tensor:
    """Return a weight as it is."""
    return weight


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The weight of one quantized layer, as it is stored.

    Attributes:
        scheme: what users call the scheme, such as "GGUF Q4_0".
        shape: the weight's shape as the layer uses it, whatever it is packed into.
        dtype: what the layer computes in.
        nbytes: the bytes that are stored for it.
        dequantize: returns the weight in float32, where it is stored. Nobody keeps that.
        bound: returns for that weight how far each of its values may be from what was quantized, float32 that
            broadcasts to its shape.
        rounded: makes of the float32 weight what the scheme rounds; it is compared with what was dequantized.
        opaque: whether only the layer's own class can use what is stored.
        cast: whether the weight is an ordinary one while the layer computes.
        unpack: makes the ordinary weight that the layer's own forward multiplies by, where that is all that it does;
            None for any other.
    """

    scheme: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    dequantize: Callable[[], Tensor]
    bound: Callable[[Tensor], Tensor]
    rounded: Callable[[Tensor], Tensor] = as_it_is
    opaque: bool = False
    cast: bool = False
    unpack: Callable[[], Tensor] | None = None


def expanded(scale: Tensor, shape: Iterable[int]) -> Tensor:
    """Return one number for each block as one for each value, float32: (…) to (shape), every axis repeated evenly."""
    scale = scale.float()
    for axis, size in enumerate(shape):
        if scale.shape[axis] not in (1, size):
            scale = scale.repeat_interleave(size // scale.shape[axis], dim=axis)
    return scale


def lost_in(dtype: torch.dtype, weight: Tensor) -> Tensor:
    """Return what a quantizer that divides and multiplies in a dtype may lose of a weight: two roundings."""
    return torch.finfo(dtype).eps * weight.abs()


def float_steps(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return half the distance between neighbours of values that are stored as scaled floating-point numbers.

    Args:
        weight: the dequantized weight.
        scale: what its numbers were multiplied by.
        dtype: of the numbers.
    """
    about = torch.finfo(dtype)
    return torch.maximum(weight.abs(), scale * about.smallest_normal) * about.eps / 2


def half_gaps(levels: Tensor, values: Tensor) -> Tensor:
    """Return the larger half of both gaps beside the level that each value is on.

    Args:
        levels: (L,), in any order.
        values: each on one of them.
    """
    levels = levels.unique()
    gaps = levels.diff() / 2
    index = torch.bucketize(values, levels[:-1] + gaps)
    beside = torch.cat([gaps.new_zeros(1), gaps, gaps.new_zeros(1)])
    return torch.maximum(beside[index], beside[index + 1])
