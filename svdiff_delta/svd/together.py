"""Prepare weights several at once; where a GPU computes bases, those of one small shape that are missing together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from torch import Tensor

from svdiff_delta.errors import DeltaError
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.parameter import Kind, Parameter

from .cache import BasisCache
from .gpu_basis import batches, round_for
from .prepare import Progress, Weights, fingerprint_weight, recall_weight
from .side_by_side import cost, run_costliest_first

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A weight whose basis is wanted.

    Attributes:
        shape: its shape.
        kind: "spectral" or "elementwise".
        axis: the axis of output channels.
        dtype: the basis dtype that a file gives; None chooses it from the values.
    """

    shape: tuple[int, ...]
    kind: Kind
    axis: int
    dtype: Dtype | None

    @staticmethod
    def of(said: Parameter) -> Wanted:
        """Return what is wanted where a delta says this of a parameter."""
        return Wanted(said.shape, said.kind, said.axis, said.dtype)

    @property
    def cost(self) -> int:
        """About how many multiplications it takes."""
        return cost(self.shape, self.kind, self.axis)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of what is decomposed."""
        rows = self.shape[self.axis]
        return rows, prod(self.shape) // max(1, rows)


def run_prepared(
    weights: Weights,
    wanted: Mapping[str, Wanted],
    cache: BasisCache,
    work: Callable[[str, bool], T],
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, T]:
    """Do as `run_costliest_first` with a `work` that prepares weights; missing bases are there already when it can be.

    Args:
        weights: where to read them.
        wanted: the weights, by name.
        cache: where bases are kept.
        work: as there; it may find a basis missing, and see to it.
        progress: as there.
        workers: as there; None for as many as torch has threads.
    """
    costs = {name: each.cost for name, each in wanted.items()}
    order = sorted(costs, key=lambda name: (-costs[name], name))
    shapes = {name: each.matrix for name, each in wanted.items() if each.kind == "spectral"}
    parts = {batch[0]: batch for batch in batches(shapes, order, cache.device)}
    if len(parts) == len(order):
        return run_costliest_first(costs, work, progress, workers)

    def whole(first: str, wait: bool) -> dict[str, T]:
        batch = parts[first]
        if len(batch) > 1 and not wait:
            _fill(weights, {name: wanted[name] for name in batch}, cache)
        return {name: work(name, wait) for name in batch}

    sums = {first: sum(costs[name] for name in batch) for first, batch in parts.items()}
    found = run_costliest_first(sums, whole, progress, workers)
    return dict(sorted(item for each in found.values() for item in each.items()))


def _fill(weights: Weights, batch: Mapping[str, Wanted], cache: BasisCache) -> None:
    """Compute the bases of a batch that are missing at once; what goes wrong is for whoever needs one to tell."""
    with suppress(DeltaError):
        missing: dict[str, tuple[Tensor, int]] = {}
        for name, each in batch.items():
            known = recall_weight(weights, name, each.axis, each.dtype)
            if known is not None and cache.has(known.fingerprint):
                continue
            known = fingerprint_weight(weights, name, each.axis, each.dtype)  # nothing is computed under what is not it
            if not cache.has(known.fingerprint):
                missing[known.fingerprint] = round_for(weights.read(name), known.dtype, cache.device), each.axis
        if len(missing) > 1:
            cache.fill(missing)


def is_missing(parameters: Iterable[Parameter], cache: BasisCache) -> bool:
    """Tell whether the cache lacks a basis of parameters."""
    return any(said.kind == "spectral" and not cache.has(said.fingerprint) for said in parameters)
