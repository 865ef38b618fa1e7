"""Tell which program wrote a file, and for which base, from its metadata and its spelling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from svdiff_delta.format.adapter_keys import Spelled

LONGEST: Final = 200
"""Characters of a stranger's word that are passed on."""

MODULES: Final = (
    ("lycoris.", "LyCORIS"),
    ("networks.lora_wan", "musubi-tuner"),
    ("networks.lora_qwen", "musubi-tuner"),
    ("networks.lora_hv", "musubi-tuner"),
    ("networks.lora_framepack", "musubi-tuner"),
    ("networks.lora_zimage", "musubi-tuner"),
    ("networks.lora_flux_2", "musubi-tuner"),
    ("networks.lora_flux_kontext", "musubi-tuner"),
    ("networks.lora_kandinsky5", "musubi-tuner"),
    ("networks.", "kohya's sd-scripts"),
)
"""Programs by the beginning of `ss_network_module`."""

FIELDS: Final = (
    ("ot_", "OneTrainer"),
    ("ss_", "kohya's sd-scripts"),
    ("svdiff", "svdiff-delta"),
)
"""Programs by the beginning of a field that others do not write."""

BASES: Final = (
    "ss_base_model_version",
    "modelspec.architecture",
    "ss_sd_model_name",
    "base_model",
    "base_model_name_or_path",
)
"""Fields of metadata that name a base or its family, the surest first."""


def program(metadata: Mapping[str, str], spelled: Spelled | None = None) -> str:
    """Return which program wrote a file, as far as it says so or its keys tell; empty if nothing does.

    Args:
        metadata: of its header.
        spelled: one of its keys, taken apart.
    """
    if name := _software(metadata.get("software", "")):
        return name
    module = metadata.get("ss_network_module", "")
    for start, name in MODULES:
        if module.startswith(start):
            return name
    for start, name in FIELDS:
        if any(key.startswith(start) for key in metadata):
            return name
    if "lora_adapter_metadata" in metadata:
        return "diffusers"
    return _by_spelling(spelled)


def _software(text: str) -> str:
    """Return the name in ai-toolkit's `software`, an object with `name`, or the word itself."""
    with suppress(ValueError, RecursionError):
        found: Any = json.loads(text)
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            return str(found["name"])[:LONGEST]
    return "" if text.startswith(("{", "[")) else text[:LONGEST]


def _by_spelling(found: Spelled | None) -> str:
    if found is None:
        return ""
    if ".default." in found.key:
        return "DiffSynth"
    return f"one of: {found.by}" if ";" in found.by else found.by


def told_base(metadata: Mapping[str, str]) -> str:
    """Return what a file says that its base is; empty if it says nothing."""
    return next((metadata[key][:LONGEST] for key in BASES if metadata.get(key)), "")
