"""Split a layer of any kind into two products: an inner one to K rows, and an outer one to the layer's output."""

from __future__ import annotations

from math import prod
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.decomposition import matricize, unmatricize

from .watched_operations import plain

HALF: Final = (torch.float16, torch.bfloat16)

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


def factors(module: nn.Module, parameter: Parameter, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Return (R, columns) and (rows, R) of the matrix from the weights that `product_weights` has made of them."""
    if isinstance(module, nn.Embedding):
        return outer.T, inner
    if isinstance(module, Conv | ConvTranspose):
        return matricize(inner, parameter.axis), outer.flatten(1)
    return inner, outer


def inner(
    module: nn.Module,
    weight: Tensor,
    x: Tensor,
    output_size: list[int] | None = None,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the layer's linear map with R = weight rows as its output channels."""
    if isinstance(module, Conv):
        return cast("Tensor", module._conv_forward(x, weight, bias))  # it knows every padding mode
    if isinstance(module, ConvTranspose):
        return _transposed(module, weight, x, output_size, bias)
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight)
    return F.linear(x, weight, bias)


def outer(module: nn.Module, weight: Tensor, hidden: Tensor, *, bias: bool) -> Tensor:
    """Return the map from R channels to the output channels, with or without the layer's bias."""
    offset = cast("Tensor | None", getattr(module, "bias", None)) if bias else None
    if isinstance(module, Conv | ConvTranspose):
        return CONVOLUTION[spatial(module)](hidden, weight, offset)
    return F.linear(hidden, weight, offset)


def added(module: nn.Module, x: Tensor, change: Tensor, /, *args: Any, **options: Any) -> Tensor:
    """Return the layer's own output plus a change of it.

    In half precision that output would be rounded before a much smaller change is added, and up to half of the change
    be lost. So linear layers, and convolutions that see one position, add it inside their product, before rounding.
    """
    if is_pointwise(module) and x.ndim == spatial(cast("Conv", module)) + 1:  # one sample without its dimension
        return added(module, x[None], change[None], *args, **options)[0]
    weight, bias = own_weight(module), cast("Tensor | None", getattr(module, "bias", None))
    if change.dtype in HALF and is_linear(module):
        result = torch.addmm(change.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1]), weight.T)
    elif change.dtype in HALF and is_pointwise(module):
        matrix = weight.flatten(1).expand(len(x), -1, -1)
        result = torch.baddbmm(change.flatten(2), matrix, x.flatten(2))
    else:
        return inner(module, weight, x, *args, bias=bias, **options) + change
    result = result.reshape(change.shape)
    result = result if bias is None else result + bias.reshape(tail(module, len(bias)))
    return laid_out(module, result, x, change.dtype)


def own_weight(module: nn.Module) -> Tensor:
    """Return a layer's weight as `inner` takes it."""
    return as_called(module, weight_of(module))


def is_linear(module: nn.Module) -> bool:
    """Tell whether a layer is one matrix product."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a layer is a convolution whose every output sees one position."""
    if not isinstance(module, Conv):
        return False
    ones = all(size == 1 for size in (*module.kernel_size, *module.stride, module.groups))
    return ones and module.padding in ("valid", (0,) * spatial(module))


def is_one_product(module: nn.Module) -> bool:
    """Tell whether a layer multiplies its channels by one matrix, position by position."""
    return is_linear(module) or is_pointwise(module)


def sides(parameter: Parameter) -> tuple[int, int]:
    """Return rows and columns of the matrix that a weight is."""
    rows = parameter.shape[parameter.axis]
    return rows, prod(parameter.shape) // rows


def as_called(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight in the layer's own shape as `inner` takes it."""
    return weight.T if type(module).__name__ == "Conv1D" else weight  # GPT-2's linear layer is stored transposed


def channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer takes or gives with its channels in the last dimension."""
    return x.movedim(-spatial(module) - 1, -1) if isinstance(module, Conv | ConvTranspose) else x


def channels_back(module: nn.Module, x: Tensor) -> Tensor:
    """Undo `channels_last`."""
    return x.movedim(-1, -spatial(module) - 1) if isinstance(module, Conv | ConvTranspose) else x


def laid_out(module: nn.Module, result: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a layer gives for an input in a dtype, laid out in memory as its own forward does it.

    Models take views of it, and none could be taken of a pointwise convolution's that is one matrix product.
    """
    if not is_pointwise(module):
        return result.to(dtype)
    last = torch.channels_last
    if x.ndim == 4 and not plain() and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return result.to(dtype).contiguous(memory_format=last)
    # The first of both copies where the dtype differs, the second where only the order does.
    return result.to(dtype, memory_format=torch.contiguous_format).contiguous()


def positions(module: nn.Module, x: Tensor) -> int:
    """Return at how many positions a layer computes for an input, all samples together."""
    if isinstance(module, Conv | ConvTranspose):
        places, stride = x.numel() // module.in_channels, prod(module.stride)
        return places * stride if isinstance(module, ConvTranspose) else places // stride
    return x.numel() // x.shape[-1]


def tail(module: nn.Module, channels: int) -> tuple[int, ...]:
    """Return the last dimensions of what `inner` returns: its channels, and ones for positions that follow them."""
    return (channels, *[1] * spatial(module)) if isinstance(module, Conv | ConvTranspose) else (channels,)


def spatial(module: Conv | ConvTranspose) -> int:
    """Return the number of spatial dimensions of a convolution."""
    return len(module.kernel_size)


def narrow(dtype: torch.dtype) -> bool:
    """Tell whether a dtype holds floating-point numbers in one byte or less: a format to store weights in."""
    return dtype.is_floating_point and dtype.itemsize < 2


def is_grouped(module: nn.Module) -> bool:
    """Tell whether a layer is a convolution whose groups see different inputs, so that no two products stand for it."""
    return isinstance(module, Conv | ConvTranspose) and module.groups > 1


def _transposed(
    module: ConvTranspose, weight: Tensor, x: Tensor, output_size: list[int] | None, bias: Tensor | None
) -> Tensor:
    size: Any = module
    padding = size._output_padding(
        x, output_size, size.stride, size.padding, size.kernel_size, spatial(module), size.dilation
    )
    call: Any = TRANSPOSED[spatial(module)]
    return cast("Tensor", call(x, weight, bias, module.stride, module.padding, padding, module.groups, module.dilation))
