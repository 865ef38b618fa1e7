"""The schemes of quantized weights that shifts can be put on: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of

from . import bitsandbytes, gguf, layerwise, quanto, torchao
from .weight import QuantizedWeight

SCHEMES: Final[tuple[Callable[[nn.Module], QuantizedWeight | None], ...]] = (
    bitsandbytes.find,
    gguf.find,
    layerwise.find,
    quanto.find,
    torchao.find,
)
"""What finds how a layer's weight is stored, by scheme. No library is imported that is not there already."""

KNOWN: Final = "bitsandbytes, GGUF, quanto, torchao int8 or float8"
"""The schemes that a model may be loaded in."""

PLAIN: Final = frozenset({Tensor, nn.Parameter})
"""The classes of weights that no library has made."""


def quantized_weight(module: nn.Module) -> QuantizedWeight | None:
    """Return how a layer's weight is stored, if it is quantized in one of the schemes; None for any other layer."""
    weight = module._parameters.get("weight")
    if weight is None or (type(weight) in PLAIN and layerwise.REGISTRY not in module.__dict__):
        return None
    return next((found for find in SCHEMES if (found := find(module)) is not None), None)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that a layer computes in: its weight's, unless that is packed or stored in another."""
    found = quantized_weight(module)
    return weight_of(module).dtype if found is None else found.dtype


def plain_weight(module: nn.Module) -> Tensor:
    """Return a layer's weight as an ordinary tensor: itself, or the quantized one as it computes, made now."""
    found = quantized_weight(module)
    if found is None:
        return weight_of(module)
    return found.dequantize().to(found.dtype) if found.unpack is None else found.unpack()


def needs_own_call(module: nn.Module, x: Tensor) -> bool:
    """Tell whether only a layer's own forward may use its weight for an input.

    A weight that is ordinary in its call may be used like any other, but not kept for the input's gradient: it would
    outlive the call.
    """
    found = quantized_weight(module)
    return found is not None and (not found.cast or (torch.is_grad_enabled() and x.requires_grad))
