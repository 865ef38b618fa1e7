"""Recognize LoRA for Flux and its kin under the original names of their blocks (spec, section 7.10)."""

from __future__ import annotations

from typing import Final

from .dialect import Dialect
from .energy_limits import LEAST
from .lazy_tensors import OpenedAdapter
from .spelled_reader import begins, read

STARTS: Final = (
    "lora_unet_double_blocks_",
    "lora_unet_single_blocks_",
    "diffusion_model.double_blocks.",
    "diffusion_model.single_blocks.",
    "base_model.model.double_blocks.",
    "base_model.model.single_blocks.",
    "double_blocks.",
    "single_blocks.",
)
"""How keys begin that name Flux's blocks as the original code does."""


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file names Flux's blocks as the original code does."""
    return begins(source, *STARTS)


flux: Final = Dialect("LoRA for Flux under its original names", recognizes, read, min_energy=LEAST)
