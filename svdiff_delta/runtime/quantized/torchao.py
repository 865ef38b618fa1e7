"""Read weights of torchao: int8 and float8, with a scale for a row, a block or the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from .weight import QuantizedWeight, expanded, float_steps, lost_in

CLASSES: Final[Mapping[str, str]] = {"Int8Tensor": "int8", "Float8Tensor": "float8"}
"""The classes of weights that are known here, and what they hold."""


def find(module: nn.Module) -> QuantizedWeight | None:
    """Return how a layer's weight is stored by torchao; None if it is not, or in a class that is not known here."""
    weight: Any = module._parameters["weight"]
    held = CLASSES.get(type(weight).__name__)
    if held is None or not type(weight).__module__.startswith("torchao"):
        return None
    if getattr(weight, "act_pre_scale", None) is not None:  # then it is the weight of scaled inputs
        return None
    find_bound = _int8_bound if held == "int8" else _float8_bound
    parts = [getattr(weight, name) for name in weight.tensor_data_names]
    return QuantizedWeight(
        f"torchao {held}",
        tuple(weight.shape),
        weight.dtype,
        sum(part.nbytes for part in parts),
        lambda: _dequantized(weight),
        lambda found: find_bound(weight, found),
    )


def _dequantized(weight: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(weight.dequantize(torch.float32))


def _int8_bound(weight: Any, found: Tensor) -> Tensor:
    scale, about = expanded(weight.scale, found.shape), torch.finfo(weight.dtype)
    # It divides by a scale in the dtype of the weight, where a small one has few digits.
    coarse = about.smallest_normal * about.eps / 2 / scale
    return scale / 2 + lost_in(weight.dtype, found) + coarse * found.abs()


def _float8_bound(weight: Any, found: Tensor) -> Tensor:
    scale = expanded(weight.scale, found.shape)
    return float_steps(found, scale, weight.qdata.dtype) + lost_in(weight.dtype, found)
