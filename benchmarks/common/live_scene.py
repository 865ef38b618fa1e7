"""What the sections of `live.py` measure on, and where they put what they found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from svdiff_delta import Delta, load, open_base, save, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache

RUNS = 3
"""Processes of each way, of which the median counts."""

Rows = dict[str, tuple[float, float]]
"""Limit and figure by what is measured."""


@dataclass
class Scene:
    """What all sections measure on, and what they found.

    Attributes:
        rows: figures with limits.
        beside: figures without.
        notes: lines to print above.
        figures: what else the JSON file says.
    """

    folder: Path
    temporary: Path
    side: int
    rounds: int
    rows: Rows = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def base(self) -> Base:
        """The folder, opened."""
        return open_base(self.folder)

    @cached_property
    def cache(self) -> BasisCache:
        """Its bases."""
        return BasisCache(self.folder / "cache")

    @cached_property
    def deltas(self) -> list[Delta]:
        """Two deltas on all of its weights."""
        return make_deltas(self.base, self.cache, self.temporary)

    @property
    def delta(self) -> Path:
        """The first delta's file."""
        assert self.deltas
        return self.temporary / "0.safetensors"

    @cached_property
    def model(self) -> Any:
        """The model in float32."""
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_pretrained(self.folder).requires_grad_(False).eval()


def make_deltas(base: Base, cache: BasisCache, folder: Path, count: int = 2) -> list[Delta]:
    """Return random deltas on all weights, loaded from files."""
    zero, random, found = zero_delta(base, cache=cache), np.random.default_rng(0), []
    for index in range(count):
        values = {name: 0.01 * random.standard_normal(shift.size) for name, shift in zero.items()}
        save(Delta(values, zero.metadata), folder / f"{index}.safetensors")
        found.append(load(folder / f"{index}.safetensors"))
    return found
