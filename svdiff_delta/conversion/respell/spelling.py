"""Spell the tensors of a layer as a dialect does: the beginning is its target's, the ends stand here."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from svdiff_delta.conversion.comfyui import ComfyTarget
from svdiff_delta.conversion.diffusers import DiffusersTarget
from svdiff_delta.conversion.kohya import KohyaTarget
from svdiff_delta.conversion.lycoris import LycorisTarget
from svdiff_delta.conversion.peft import PeftTarget
from svdiff_delta.conversion.write_target import Target
from svdiff_delta.errors import InputError

from .fused import MAGNITUDE, THROUGH, UP
from .raw import Raw

TARGETS: Final[Mapping[str, type[Target]]] = {
    "diffusers": DiffusersTarget,
    "peft": PeftTarget,
    "kohya": KohyaTarget,
    "lycoris": LycorisTarget,
    "comfyui": ComfyTarget,
}
"""Dialects that an adapter can be spelled in."""

ORIGINAL: Final = frozenset({"kohya", "comfyui"})
"""Those that go by the names of the original code."""

CONFIGURED: Final = frozenset({"diffusers", "peft"})
"""Those that have alphas in a configuration, and nothing but LoRA's factors and DoRA's magnitudes in tensors."""

_PEFT: Final = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora_up.bias": "lora_B.bias",
    "dora_scale": "lora_magnitude_vector",
}
_COMFYUI: Final = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
ENDS: Final[Mapping[str, Mapping[str, str]]] = {"diffusers": _PEFT, "peft": _PEFT, "comfyui": _COMFYUI}
"""Ends of keys by role; where a dialect says none, the role is the end."""


def module_name(up: str) -> str:
    """Return the name of a module in a dialect, from the key of its second factor there."""
    return up.rpartition(".lora_")[0]


def spelled(module: str, tensors: Mapping[str, Raw], dialect: str) -> dict[str, Raw]:
    """Return a layer's tensors under a dialect's keys.

    Args:
        module: its name there.
        tensors: by role; without an alpha where the dialect has it in a configuration.
        dialect: the dialect.

    Raises:
        InputError: the dialect has no place for one of them.
    """
    ends, found = ENDS.get(dialect, {}), {}
    for role, value in tensors.items():
        if dialect in CONFIGURED and role not in ends:
            raise InputError(f"{module}: {dialect} has no place for its {role}", fix="convert it to lycoris or comfyui")
        if role == "lora_up.bias" and dialect not in CONFIGURED:
            raise InputError(f"{module}: {dialect} has no place for a LoRA's bias", fix="convert it to peft")
        if role == MAGNITUDE:
            value = _magnitude(module, value, tensors, dialect)
        found[f"{module}.{ends.get(role, role)}"] = value
    return found


def _magnitude(module: str, value: Raw, tensors: Mapping[str, Raw], dialect: str) -> Raw:
    """Return DoRA's magnitudes in a dialect's shape: (out,) or (1, out, 1, 1) in PEFT, else (out, 1, …)."""
    up = tensors.get(UP)
    rows, count = (up.shape[0], len(up.shape)) if up else (prod(value.shape), 2)
    if dialect not in CONFIGURED:
        shape = (rows, *[1] * (count - 1))
        return value if value.shape[:1] == (1,) and len(value.shape) == 2 else _shaped(module, value, shape)
    if len(value.shape) > 1 and value.shape[0] == 1 and value.shape[-1] != 1:
        raise InputError(
            f"{module}: has magnitudes of a layer's inputs, and {dialect} only those of its outputs", fix=THROUGH
        )
    return _shaped(module, value, (rows,) if count == 2 else (1, rows, *[1] * (count - 2)))


def _shaped(module: str, value: Raw, shape: tuple[int, ...]) -> Raw:
    if prod(value.shape) != prod(shape):
        raise InputError(f"{module}: has {prod(value.shape)} magnitudes for {prod(shape)} outputs")
    return Raw(value.dtype, shape, value.data)
