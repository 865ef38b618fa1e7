"""Read LoRA for Flux under the original block names, through diffusers' own converters (spec, section 7.10)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from svdiff_delta.errors import InputError, MissingExtraError
from svdiff_delta.format.foreign import module_of

from .adapter_reader import BIAS, NO_HALF, NO_LAYOUT, NO_RULE, Adapter, width
from .dialect import Changes, Dialect, Job
from .diffusers import read_tensors
from .energy_limits import LEAST
from .key_map import Names
from .kohya import begins, place_of, read_module
from .lazy_tensors import MemoryTensors, Modules, OpenedAdapter, Ref, TensorFile

STARTS: Final = (
    "lora_unet_double_blocks_",
    "lora_unet_single_blocks_",
    "lora_transformer_transformer_blocks_",
    "lora_transformer_single_transformer_blocks_",
    "diffusion_model.double_blocks.",
    "diffusion_model.single_blocks.",
    "base_model.model.double_blocks.",
    "base_model.model.single_blocks.",
    "double_blocks.",
    "single_blocks.",
)
"""How keys begin that name Flux's blocks in another way than diffusers does."""

_FACTOR: Final = re.compile(r"\.(?:lora_(?:down|up|A|B)\.weight|(?:down|up)\.weight)$")
_PART: Final = re.compile(rf"{_FACTOR.pattern}|\.alpha$")
_BIASES: Final = (".diff_b", ".lora_B.bias")
"""Ends of keys that change a layer's bias, and not its weight."""


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file names Flux's blocks in another way than diffusers does."""
    return begins(source, *STARTS)


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes of a LoRA for Flux.

    diffusers' converter drops what it has no place for. It is given one module at a time, in float64 and at a scale of
    1, so that what it does not answer is known.

    Raises:
        InputError, FormatError: the file cannot be read, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
        MissingExtraError: diffusers is needed and not installed.
    """
    file, names = source.file(), Names(job.base)
    adapter = Adapter(source.name, [file])
    converted: dict[str, Tensor] = {}
    for path, refs in _modules(file).items():
        adapter.widths[path] = max(map(width, refs.values()))
        if place_of(path, names):
            parts = {key.removeprefix(f"{path}."): ref for key, ref in refs.items()}
            if read_module(path, parts, names, adapter):
                adapter.assume_scale(path)
            continue
        found = _convert_module(path, refs, adapter)
        if found and not any(key.endswith(".alpha") and ref.number() for key, ref in refs.items()):
            adapter.assume_scale(path)
        if twice := converted.keys() & found.keys():
            raise InputError(f"{source.name}: two sets of keys become {min(twice)}, one of them {path}", fix="keep one")
        converted |= found
    read_tensors(MemoryTensors(source.name, converted), {}, names, adapter, scaled=True)
    return adapter.changes(job)


def _modules(file: TensorFile) -> Modules:
    """Return all tensors of a file by module: a flat name ends at its dot, a dotted one before what says the part."""
    modules, others = Modules(), []
    for key in file.keys():  # noqa: SIM118 - it is no mapping
        path = key.partition(".")[0] if key.startswith("lora_") else _PART.sub("", key)
        if path == key:
            others.append(key)
        else:
            modules.take(path, key, Ref(file, key))
    for key in others:
        modules.take(modules.owner(key) or module_of(key), key, Ref(file, key))
    return modules


def _convert_module(path: str, refs: Mapping[str, Ref], adapter: Adapter) -> dict[str, Tensor]:
    """Return what diffusers makes of a module; nothing, and its keys are left out, if it is not understood whole."""
    biases = [key for key in refs if key.endswith(_BIASES)]
    factors = {key: ref for key, ref in refs.items() if key not in biases}
    unknown = [key for key in factors if not _PART.search(key)]
    adapter.leave(biases, BIAS)
    halves = [key for key in factors if _FACTOR.search(key)]
    if unknown or not halves:
        adapter.spoil(unknown or factors, None, factors)
        return {}
    if len(halves) == 1:
        adapter.leave(factors, NO_HALF)
        return {}
    found = _converted(_scaled(path, factors))
    if not found or found.keys() == factors.keys():  # diffusers passes on what it does not know
        adapter.leave(factors, NO_LAYOUT if found else NO_RULE)
        return {}
    return found


def _scaled(path: str, refs: Mapping[str, Ref]) -> dict[str, Tensor]:
    """Return a module's tensors with the scale in the second factor, and with alpha, if there is one, at the rank.

    diffusers 0.42 never ends where alpha is negative or 0.

    Raises:
        InputError: a factor is missing, or their ranks differ, which the converter would not see.
        TensorError: as `Ref.read`.
    """
    down = [key for key in refs if re.search(r"(lora_)?down\.weight$|lora_A\.weight$", key)]
    up = [key for key in refs if re.search(r"(lora_)?up\.weight$|lora_B\.weight$", key)]
    shapes = [refs[key].shape for key in (*down[:1], *up[:1])]
    if len(down) != 1 or len(up) != 1 or len(shapes[1]) < 2 or shapes[1][1] != shapes[0][0]:
        shown = ", ".join(f"{key} {list(ref.shape)}" for key, ref in refs.items())
        raise InputError(f"{path}: its two factors are not there, or their ranks differ ({shown})")
    rank = max(1, shapes[0][0])
    found = {key: refs[key].read() for key in (*down, *up)}
    for key in refs.keys() - found.keys():
        found[up[0]] *= (
            refs[key].number() or rank
        ) / rank  # sd-scripts takes 0 for "not given", as kohya's reader does
        found[key] = torch.tensor(float(rank), dtype=torch.float64)
    return found


def _converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what diffusers makes of one module's tensors; nothing if it has no place for them."""
    try:
        from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
    except ImportError:
        raise MissingExtraError("diffusers", "train") from None
    try:
        found = FluxLoraLoaderMixin.lora_state_dict(state)
    except (ValueError, KeyError, AssertionError, NotImplementedError, IndexError, RuntimeError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


flux: Final = Dialect("LoRA for Flux under its original names", recognizes, read, min_energy=LEAST)
