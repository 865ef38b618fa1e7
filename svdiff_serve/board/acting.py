"""Say where a δ acts, and how two of them meet, as the page draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import DeltaError
from svdiff_delta.ops.blocks import Block, block_at
from svdiff_delta.ops.overlap import Meeting, overlap
from svdiff_delta.ops.profile import Part, Profile, profile
from svdiff_serve.errors import RefusedError

from .shelf import Opened, Shelf

SUBSETS: Final = (
    "unet", "transformer", "text", "text-1", "text-2", "text-3",
    "unet-2d", "unet-4d", "unet-1d", "down", "mid", "up",
    "attn", "unet-attn", "transformer-attn", "text-attn", "mlp", "unet-mlp", "transformer-mlp", "text-mlp",
    "kv", "ca", "unet-ca", "transformer-ca", "down-ca", "mid-ca", "up-ca", "ca-kv", "unet-ca-kv", "transformer-ca-kv",
)  # fmt: skip
"""Subsets that sliders are for, the wider ones first."""

LONGEST: Final = 9
"""Digits of numbers in a picture of layers, which nobody reads to the last."""


def acting(shelf: Shelf, name: str) -> JSON:
    """Return where a δ acts; of one of another base too, as long as it is a δ.

    Raises:
        UnknownDeltaError: it is not there, or no δ.
    """
    opened = shelf.open(name, any_base=True)
    sigmas = None if opened.entry.fault else shelf.service.live.sigmas()
    found = profile(opened.delta, _all(opened, sigmas))
    order = {block: number for number, block in enumerate(found.blocks)}
    return {
        "name": name,
        "sha256": opened.entry.digest,
        "range": "sigma" if found.of_sigma else "delta",
        "largest": found.largest,
        "energy": found.energy,
        "blocks": [_block(block) | _part(part) for block, part in found.blocks.items()],
        "layers": _layers(found, order),
        "subsets": _subsets(opened, found),
    }


def _all(opened: Opened, sigmas: Mapping[str, NDArray[np.float64]] | None) -> Mapping[str, NDArray[np.float64]] | None:
    """Return the singular values of a δ's parameters; None where some are not known."""
    spectral = (name for name, item in opened.delta.metadata.parameters.items() if item.kind == "spectral")
    return sigmas if sigmas is not None and all(name in sigmas for name in spectral) else None


def _block(block: Block) -> dict[str, Any]:
    return {"label": block.label, "component": block.component, "selector": block.selector}


def _part(part: Part) -> dict[str, Any]:
    return {
        "energy": part.energy,
        "parameters": part.parameters,
        "numbers": part.numbers,
        "low": part.low,
        "high": part.high,
    }


def _layers(found: Profile, order: Mapping[Block, int]) -> list[list[Any]]:
    return [
        [name, order[block_at(name)], _short(part.energy), _short(part.low), _short(part.high)]
        for name, part in found.layers.items()
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{LONGEST}g}")


def _subsets(opened: Opened, found: Profile) -> list[dict[str, Any]]:
    """Return the subsets that name some of a δ's parameters; of two that name the same, the first."""
    seen: set[Sequence[str]] = set()
    rows = []
    for selector in SUBSETS:
        try:
            names = opened.named(selector)
        except DeltaError:
            continue
        if names not in seen:
            seen.add(names)
            energy = sum(found.layers[name].energy for name in names)
            rows.append({"selector": selector, "parameters": len(names), "energy": energy})
    return sorted(rows, key=lambda row: -row["parameters"])


def meeting(shelf: Shelf, a: str, b: str) -> JSON:
    """Return how two deltas meet.

    Raises:
        UnknownDeltaError: one is not there, or cannot be used.
        RefusedError: they are for different bases.
    """
    first, second = shelf.open(a), shelf.open(b)
    try:
        found = overlap(first.delta, second.delta)
    except DeltaError as error:
        raise RefusedError(error.message, fix=error.fix) from None
    return {
        "a": a,
        "b": b,
        **_meeting(found.whole),
        "shared": found.shared,
        "blocks": [_block(block) | _meeting(each) for block, each in found.blocks.items()],
    }


def _meeting(found: Meeting) -> dict[str, Any]:
    return {"cosine": found.cosine, "conflicts": found.conflicts, "numbers": found.numbers}
