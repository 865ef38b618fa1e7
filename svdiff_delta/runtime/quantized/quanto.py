"""Read weights of optimum-quanto: qint8 and qfloat8 with one scale a row, qint4 and qint2 with one for a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .weight import QuantizedWeight, expanded, float_steps, lost_in


def find(module: nn.Module) -> QuantizedWeight | None:
    """Return how a layer's weight is stored by quanto; None if it is not, or if its inputs are quantized too."""
    weight: Any = module._parameters["weight"]
    if not type(weight).__module__.startswith("optimum.quanto") or not hasattr(weight, "qtype"):
        return None
    if getattr(module, "activation_qtype", None) is not None or weight.axis != 0:
        return None
    return QuantizedWeight(
        f"quanto {weight.qtype.name}",
        tuple(weight.shape),
        weight.dtype,
        _nbytes(weight),
        lambda: _dequantized(weight),
        lambda found: _bound(weight, found),
        opaque=True,
    )


def _dequantized(weight: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(weight.dequantize()).float()


def _bound(weight: Any, found: Tensor) -> Tensor:
    kind = weight.qtype
    if kind.bits == 8:
        scale = expanded(weight._scale, found.shape)
        steps = float_steps(found, scale, kind.dtype) if kind.is_floating_point else scale / 2
        return steps + lost_in(weight.dtype, found)
    plain = weight if hasattr(weight, "_scale") else weight.weight_qbits_tensor()
    # The groups follow one another along the rows. What is added to make numbers positive is rounded with them; kernels
    # that want the middle of the range instead round that too.
    lines, scale = found.reshape(plain._scale.numel(), -1), plain._scale.float().reshape(-1, 1)
    added = plain._shift.float().abs().reshape(-1, 1) if plain._shift.is_floating_point() else 0.0
    middle = 0.0 if plain is weight else scale * 2 ** (kind.bits - 1)
    bound: Tensor = scale / 2 + 3 * lost_in(weight.dtype, lines.abs() + 2 * added + middle)
    return bound.reshape(found.shape)


def _nbytes(weight: Any) -> int:
    """Return the bytes of all ordinary tensors that a weight consists of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return int(weight.nbytes)
    names, _ = weight.__tensor_flatten__()
    return sum(_nbytes(getattr(weight, name)) for name in names)
