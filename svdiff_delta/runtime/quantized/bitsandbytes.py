"""Read weights of bitsandbytes: nf4 and fp4 in blocks, and int8 with one scale a row."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from .weight import QuantizedWeight, half_gaps, lost_in


def find(module: nn.Module) -> QuantizedWeight | None:
    """Return how a layer's weight is stored by bitsandbytes; None if it is not, or not quantized yet."""
    weight: Any = module._parameters["weight"]
    if not type(weight).__module__.startswith("bitsandbytes"):
        return None
    if type(weight).__name__ == "Params4bit":
        state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
        return None if state is None else _four_bits(module, weight, state)
    if type(weight).__name__ == "Int8Params" and not weight.has_fp16_weights:
        return _eight_bits(module, weight)
    return None


def _four_bits(module: nn.Module, weight: Any, state: Any) -> QuantizedWeight:
    functional: Any = sys.modules["bitsandbytes.functional"]

    def dequantize() -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(functional.dequantize_4bit(weight.data, state)).reshape(state.shape).float()

    def bound(found: Tensor) -> Tensor:
        largest, off = _largest(functional, state)
        each = largest.repeat_interleave(state.blocksize)[: found.numel()].reshape(found.shape)
        level = torch.where(each > 0, found / each, 0.0)
        return (each + off) * half_gaps(state.code.float(), level) + off * level.abs() + lost_in(state.dtype, found)

    dtype = getattr(module, "compute_dtype", None) or state.dtype
    scheme, parts = f"bitsandbytes {state.quant_type}", [weight.data, state.absmax]
    if state.nested:
        parts.append(state.state2.absmax)
    nbytes = sum(part.nbytes for part in parts)
    return QuantizedWeight(scheme, tuple(state.shape), dtype, nbytes, dequantize, bound, opaque=True)


def _largest(functional: Any, state: Any) -> tuple[Tensor, float]:
    """Return the largest value of each block, and how far from it that may be stored: it may be quantized itself."""
    if not state.nested:
        return state.absmax.float(), 0.0
    largest = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    code = state.state2.code.float().unique()
    return largest.float(), float(code.diff().max() / 2 * state.state2.absmax.max())


def _eight_bits(module: nn.Module, weight: Any) -> QuantizedWeight | None:
    state = getattr(module, "state", None)
    values = next((each for each in (weight.CB, getattr(state, "CB", None)) if each is not None), weight.data)
    scale = next((each for each in (weight.SCB, getattr(state, "SCB", None)) if each is not None), None)
    if scale is None:
        return None
    rows: Tensor = scale.float()[:, None] / 127

    def bound(found: Tensor) -> Tensor:
        return rows / 2 + lost_in(torch.float16, found)  # it rounds to float16 first

    bias = module._parameters.get("bias")
    dtype = torch.float16 if bias is None else bias.dtype
    nbytes = values.nbytes + scale.nbytes
    return QuantizedWeight(
        "bitsandbytes int8", tuple(values.shape), dtype, nbytes, lambda: values.float() * rows, bound, opaque=True
    )
