"""Read weights of GGUF files as diffusers keeps them: bytes of blocks, which its linear layer unpacks in every call."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from .weight import QuantizedWeight, as_it_is

SIMPLE: Final[Mapping[str, int]] = {"Q4_0": 7, "Q5_0": 15, "Q8_0": 127}
"""Types of 32 values that are whole multiples of one step, and the largest multiple above zero."""

SHIFTED: Final = ("Q4_1", "Q5_1")
"""Types of 32 values with a step and a least value. A file may have the pair that fits best, so both ends move."""

NESTED: Final[Mapping[str, tuple[int, int]]] = {
    "Q2_K": (2, 256),
    "Q3_K": (3, 256),
    "Q4_K": (4, 256),
    "Q5_K": (5, 256),
    "Q6_K": (6, 256),
    "IQ4_NL": (4, 32),
    "IQ4_XS": (4, 256),
}
"""Types whose steps are quantized again: bits of a value, and how many values share what their steps are made of."""


PIECE: Final = 1 << 18
"""Weights that are unpacked together; what is between stays in the processor's cache."""


def find(module: nn.Module) -> QuantizedWeight | None:
    """Return how a layer's weight is stored in GGUF blocks; None if it is not, or its layer does not unpack it."""
    weight: Any = module._parameters["weight"]
    if type(weight).__name__ != "GGUFParameter" or type(module).__name__ != "GGUFLinear":
        return None
    kind = weight.quant_type.name
    if kind not in {*SIMPLE, *SHIFTED, *NESTED, "BF16"}:
        return None
    dtype: torch.dtype | None = getattr(module, "compute_dtype", None)
    host = weight.device.type == "cpu"  # elsewhere its layer may have a kernel that does both at once
    return QuantizedWeight(
        f"GGUF {kind}",
        tuple(weight.quant_shape),
        dtype or torch.float32,
        weight.numel() * weight.element_size(),
        lambda: _dequantized(weight, torch.float32),
        lambda found: _bound(weight, kind, found),
        (lambda given: given.bfloat16().float()) if kind == "BF16" else as_it_is,
        opaque=True,
        unpack=partial(_dequantized, weight, dtype) if host and dtype is not None else None,
    )


def _dequantized(weight: Any, dtype: torch.dtype) -> Tensor:
    """Return a weight in a dtype; on the CPU piece by piece, since all that is between is four times as large."""
    utils: Any = sys.modules[type(weight).__module__]
    packed, rows = weight.as_tensor().detach(), max(1, PIECE // weight.quant_shape[-1])
    if packed.device.type != "cpu":
        rows = len(packed)
    result = torch.empty(tuple(weight.quant_shape), dtype=dtype, device=packed.device)
    with torch.no_grad():
        for part, place in zip(packed.split(rows), result.split(rows), strict=True):
            found = utils.dequantize_gguf_tensor(type(weight)(part, quant_type=weight.quant_type))
            place.copy_(found.float())  # torch casts float16 to bfloat16 number by number
    return result


def _bound(weight: Any, kind: str, found: Tensor) -> Tensor:
    if kind == "BF16":
        return found.new_zeros(())
    blocks = found.reshape(-1, NESTED[kind][1] if kind in NESTED else 32)
    largest = blocks.abs().amax(1, keepdim=True)
    # Steps are stored in float16, and what they are multiplied with is rounded and added up in it.
    about = torch.finfo(torch.float16)
    lost = about.eps * (blocks.abs() if kind in SIMPLE else 4 * largest) + about.smallest_normal / 8
    if kind in NESTED:
        bound: Tensor = (2 * largest / (2 ** NESTED[kind][0] - 1) + lost).expand(blocks.shape).reshape(found.shape)
        return bound
    step: Tensor = _steps(weight, blocks.shape[0]).abs()
    # Both ends may be cut off, by up to one step.
    inside = blocks.abs() < (SIMPLE.get(kind, 0) - 0.5) * step
    return (torch.where(inside, step / 2, step) + lost).reshape(found.shape)


def _steps(weight: Any, blocks: int) -> Tensor:
    """Return the step of each block (blocks, 1), which stands first in it."""
    first: Tensor = weight.as_tensor().reshape(blocks, -1).view(torch.uint8)[:, :2].contiguous()
    return first.view(torch.float16).float()
