"""The two products that stand for a shifted weight, in every kind of layer: inner to K rows, outer to the output."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_delta.basis import unmatricize
from svdiff_delta.parameter import Parameter

CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def product_weights(module: nn.Module, parameter: Parameter, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of `inner` and `outer` for this layer.

    Args:
        module: the layer.
        parameter: what the delta file says about its weight.
        rows: (R, columns of the matrix).
        columns: (rows of the matrix, R).
    """
    if isinstance(module, nn.Embedding):  # it looks rows of the matrix up, so they come first
        return columns.contiguous(), rows.T.contiguous()
    if isinstance(module, Conv | ConvTranspose):
        shape = list(parameter.shape)
        shape[parameter.axis] = rows.shape[0]
        inside = unmatricize(rows, tuple(shape), parameter.axis)
        return inside.contiguous(), columns.reshape(*columns.shape, *[1] * spatial(module)).contiguous()
    return rows.contiguous(), columns.contiguous()


def inner(module: nn.Module, weight: Tensor, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    """Return the layer's linear map with R = weight rows as its output channels, without bias."""
    if isinstance(module, Conv):
        return cast("Tensor", module._conv_forward(x, weight, None))  # it knows every padding mode
    if isinstance(module, ConvTranspose):
        return _transposed(module, weight, x, output_size)
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight)
    return F.linear(x, weight)


def outer(module: nn.Module, weight: Tensor, hidden: Tensor) -> Tensor:
    """Return the map from R channels to the output channels, with the layer's bias."""
    bias = cast("Tensor | None", getattr(module, "bias", None))
    if isinstance(module, Conv | ConvTranspose):
        return CONVOLUTION[spatial(module)](hidden, weight, bias)
    return F.linear(hidden, weight, bias)


def channels_first(module: nn.Module, gain: Tensor) -> Tensor:
    """Return a gain per channel (R,) in a shape that multiplies what `inner` returns."""
    return gain.reshape(-1, *[1] * spatial(module)) if isinstance(module, Conv | ConvTranspose) else gain


def spatial(module: Conv | ConvTranspose) -> int:
    """Return the number of spatial dimensions of a convolution."""
    return len(module.kernel_size)


def is_grouped(module: nn.Module) -> bool:
    """Tell whether a layer is a convolution whose groups see different inputs, so that no two products stand for it."""
    return isinstance(module, Conv | ConvTranspose) and module.groups > 1


def _transposed(module: ConvTranspose, weight: Tensor, x: Tensor, output_size: list[int] | None) -> Tensor:
    size: Any = module
    padding = size._output_padding(
        x, output_size, size.stride, size.padding, size.kernel_size, spatial(module), size.dilation
    )
    call: Any = TRANSPOSED[spatial(module)]
    return cast("Tensor", call(x, weight, None, module.stride, module.padding, padding, module.groups, module.dilation))
