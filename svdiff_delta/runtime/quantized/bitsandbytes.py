"""Read weights of bitsandbytes: nf4 and fp4 in blocks, and int8 with one scale a row."""

from __future__ import annotations

import copy
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
        packed, largest, _ = _unpacked(functional, weight.data, state)
        plain = copy.copy(state)
        plain.absmax, plain.nested, plain.dtype = largest, False, torch.float32
        with torch.no_grad():
            return torch.as_tensor(functional.dequantize_4bit(packed, plain)).reshape(state.shape)

    def bound(found: Tensor) -> Tensor:
        _, largest, off = _unpacked(functional, weight.data, state)
        each, lost = (
            part.repeat_interleave(state.blocksize)[: found.numel()].reshape(found.shape) for part in (largest, off)
        )
        level = torch.where(each > 0, found / each, 0.0)
        return (each + lost) * half_gaps(state.code.float(), level) + lost * level.abs()

    dtype = getattr(module, "compute_dtype", None) or state.dtype
    parts = [weight.data, state.absmax, *([state.state2.absmax] if state.nested else [])]
    nbytes = sum(part.nbytes for part in parts)
    return QuantizedWeight(
        f"bitsandbytes {state.quant_type}", tuple(state.shape), dtype, nbytes, dequantize, bound, opaque=True
    )


def _unpacked(functional: Any, packed: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the 4-bit numbers in order, the largest value of each block, and how far from it that may be stored.

    The largest values may be quantized themselves. Some processors' kernels want all of it in another order, and round
    the largest values to bfloat16 for that; bitsandbytes reorders a weight when it is first called there.
    """
    if not getattr(state, "packing_format_for_cpu", False):
        if not state.nested:
            return packed, state.absmax.float(), torch.zeros_like(state.absmax, dtype=torch.float32)
        largest = (functional.dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
        return packed, largest, _lost(functional, largest, state.offset)
    largest = state.absmax.float().T.reshape(-1)
    twin = copy.copy(state)
    twin.original_nested = False  # else the largest values would be quantized once more
    packed, _ = functional._convert_weight_packed_for_cpu_inverse(packed, twin)
    lost = torch.finfo(torch.bfloat16).eps * largest
    return packed, largest, lost + _lost(functional, largest, state.offset) if state.original_nested else lost


def _lost(functional: Any, largest: Tensor, offset: Any) -> Tensor:
    """Return what the 8-bit code of bitsandbytes may lose of the largest values, of which each 256 share a scale."""
    steps = functional.create_dynamic_map().to(largest).unique().diff()
    lost: Tensor = steps.max() / 2 * (largest - offset).abs().max() * 1.01
    return lost.expand(largest.shape)


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
