"""Write PEFT's configuration for layers with alphas of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from svdiff_delta.conversion.peft_config import low_rank_config

from .fused import ALPHA, DOWN, MAGNITUDE
from .raw import Raw

Number = int | float


def config_of(layers: Mapping[str, Mapping[str, Raw]], paths: Sequence[str]) -> dict[str, Any]:
    """Return the fields that say ranks and alphas of a component's layers; without an alpha the scale is 1.

    Args:
        layers: the tensors by role of each layer, by path.
        paths: all layers of the component, so that a path that others end in is not taken for them.
    """
    ranks = {path: tensors[DOWN].shape[0] for path, tensors in layers.items()}
    alphas = {path: _alpha(tensors) for path, tensors in layers.items()}
    fields = low_rank_config(ranks, paths)
    common = Counter(sorted(alphas.values())).most_common(1)[0][0]
    others = {path: 1 for path, alpha in alphas.items() if alpha != common}
    patterns = _patterns(others, paths)
    return {
        **fields,
        "lora_alpha": common,
        "alpha_pattern": {patterns[path]: alphas[path] for path in sorted(others)},
        "use_dora": any(MAGNITUDE in tensors for tensors in layers.values()),
        "lora_bias": any("lora_up.bias" in tensors for tensors in layers.values()),
    }


def _alpha(tensors: Mapping[str, Raw]) -> Number:
    value = tensors[ALPHA].number() if ALPHA in tensors else float(tensors[DOWN].shape[0])
    return int(value) if value.is_integer() else value


def _patterns(chosen: Mapping[str, int], paths: Sequence[str]) -> dict[str, str]:
    """Return the pattern of each layer, as the field for ranks has it."""
    found = {}
    for path in chosen:
        # Two layers of unlike rank, so that the field has a pattern of this one.
        (pattern,) = low_rank_config({path: 2, "": 1, " ": 1}, paths)["rank_pattern"]
        found[path] = pattern
    return found
