"""LoRA for Flux under the original names of its blocks, through diffusers' own converters (spec, section 7.10)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from svdiff_delta.errors import InputError, MissingExtraError

from .adapter import NO_RULE, Adapter, width
from .dialect import Changes, Dialect, Job
from .diffusers import read_tensors
from .energy import LEAST
from .kohya import begins
from .names import Names
from .tensors import MemoryTensors, Modules, Ref, open_tensors

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

_PART: Final = re.compile(r"\.(?:lora_(?:down|up|A|B)\.weight|(?:down|up)\.weight|alpha)$")


def recognizes(path: Path) -> bool:
    """Tell whether a file names Flux's blocks in another way than diffusers does."""
    return begins(path, *STARTS)


def read(source: str, job: Job) -> Changes:
    """Return the changes of a LoRA for Flux.

    diffusers' converter drops what it has no place for. It is given one module at a time, in float64 and at a scale of
    1, so that what it does not answer is known.

    Raises:
        InputError, FormatError: the file cannot be read, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
        MissingExtraError: diffusers is needed and not installed.
    """
    file = open_tensors(Path(source))
    adapter = Adapter(source, [file])
    modules = Modules()
    for key in file.keys():  # noqa: SIM118 - it is no mapping
        path = _PART.sub("", key)
        if path == key:
            adapter.left_out[key] = NO_RULE
        else:
            modules.take(path, key, Ref(file, key))
    converted: dict[str, Tensor] = {}
    without = []
    for path, refs in modules.items():
        adapter.widths[path] = max(map(width, refs.values()))
        found = _converted(_scaled(path, refs))
        if not found:
            adapter.left_out |= dict.fromkeys(refs, NO_RULE)
        elif not any(key.endswith(".alpha") for key in refs):
            without.append(path)
        if twice := converted.keys() & found.keys():
            raise InputError(f"{source}: two sets of keys become {min(twice)}, one of them {path}", fix="keep one")
        converted |= found
    if without:
        adapter.remarks.append(
            f"no alpha in {len(without)} modules ({without[0]}, …): taken to be the rank, a scale of 1"
        )
    read_tensors(MemoryTensors(source, converted), {}, Names(job.base), adapter, scaled=True)
    return adapter.changes(job)


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
        found[up[0]] *= refs[key].number() / rank
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
