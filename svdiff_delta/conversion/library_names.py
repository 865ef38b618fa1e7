"""Read the names that only a pipeline's own converter in diffusers knows, one module at a time (spec, section 7.10).

A converter drops what it has no place for, with a line in a log at best. Given one module, in float64 and at a scale of
1, it has taken all of it or nothing: the rows that come out are counted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from svdiff_delta.errors import MissingExtraError
from svdiff_delta.format.adapter_keys import Spelled, spell

from .lazy_tensors import Ref

LORA: Final = ("lora_down.weight", "lora_up.weight")
_KIND: Final = re.compile(r"(?:Video)?(?:Transformer|UNet)\dD(?:Condition)?Model$")


def convert_module(kind: str, pipeline: str, module: Spelled, refs: Mapping[str, Ref]) -> dict[str, Tensor]:
    """Return what diffusers makes of a module's two factors, under its own keys; nothing if not all is taken.

    Args:
        kind: the class of the denoiser.
        pipeline: the class of the pipeline, "" where nothing says it.
        module: the module.
        refs: its tensors by role: the two factors, and an alpha, which is left aside.

    Raises:
        MissingExtraError: diffusers is not installed.
        TensorError: as `Ref.read`.
    """
    if (loader := _loader(kind, pipeline)) is None:
        return {}
    down, up = (refs[role].read() for role in LORA)
    for state in _spellings(module, refs, down, up):
        found = _converted(loader, state)
        if found.keys() != state.keys() and _is_whole(found, up):
            return found
    return {}


def _spellings(module: Spelled, refs: Mapping[str, Ref], down: Tensor, up: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield a module in the spellings that converters know; alpha, where they want one, is the rank.

    diffusers 0.42 never ends where alpha is negative or 0.
    """
    alpha = torch.tensor(float(max(1, len(down))), dtype=torch.float64)
    written = {refs[role].key: value for role, value in zip(LORA, (down, up), strict=True)}
    yield {**written, refs["alpha"].key: alpha} if "alpha" in refs else written
    dotted = f"diffusion_model.{module.path}"
    yield {f"{dotted}.lora_A.weight": down, f"{dotted}.lora_B.weight": up}
    flat = f"lora_unet_{module.flattened}"
    yield {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": alpha}


def _is_whole(found: Mapping[str, Tensor], up: Tensor) -> bool:
    """Tell whether all rows of a module came out, each weight with both of its factors."""
    spelled = [(spell(key), value) for key, value in found.items()]
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in spelled:
        if key is None or key.role not in LORA:
            return False
        modules.setdefault(key.module, {})[key.role] = value
    pairs = [parts for parts in modules.values() if len(parts) == len(LORA)]
    rows = sum(len(parts["lora_up.weight"]) for parts in pairs)
    return len(pairs) == len(modules) and rows == len(up)


def _loader(kind: str, pipeline: str) -> Any:
    """Return the class of diffusers that loads LoRA for a pipeline, else for a denoiser; None if there is none."""
    try:
        import diffusers
        from diffusers.loaders import lora_pipeline
    except ImportError:
        raise MissingExtraError("diffusers", "train") from None
    for found in (
        getattr(diffusers, pipeline, None) if pipeline else None,
        getattr(lora_pipeline, f"{_KIND.sub('', kind)}LoraLoaderMixin", None),
        getattr(lora_pipeline, f"{_KIND.sub('', kind)}VideoLoraLoaderMixin", None),
        getattr(diffusers, f"{_KIND.sub('', kind)}Pipeline", None),
    ):
        if hasattr(found, "lora_state_dict"):
            return found
    return None


def _converted(loader: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a loader makes of one module's tensors; nothing if it has no place for them."""
    try:
        with _quiet():
            found = loader.lora_state_dict(dict(state))
    except (ValueError, KeyError, AssertionError, NotImplementedError, IndexError, RuntimeError, TypeError):
        return {}
    found = found[0] if isinstance(found, tuple) else found
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers' remarks on keys to itself: what it did not take is counted and listed here."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
