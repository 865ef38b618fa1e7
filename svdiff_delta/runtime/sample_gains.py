"""Give single samples of a running batch their own δ: gains that are computed once, and set as rows for one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.select import part_of

from .gain_table import GainTable
from .handle import Handle
from .model_locks import ordinary
from .per_sample import Batch
from .shift import Shift

Gains = Tensor
"""(G,) float32: the gains of all attached layers in a row, on the device of the layers."""


class SampleGains:
    """The gains of any δ on the layers of a live handle, and their rows for one forward.

    `Handle.per_sample` shares out a batch whose samples are known before it begins. Here samples come and go between
    two forwards: the gains of a δ are computed once, by any thread, and each forward is told which rows it has. Only
    the thread that calls the model may set rows.

    Args:
        handle: a live handle whose own δ is 0; nobody else changes it.

    Attributes:
        parameters: what the attached layers are, by sorted parameter name.

    Raises:
        AttachError: the handle is fused, detached or being trained.
    """

    def __init__(self, handle: Handle) -> None:
        handle._check_fixed()
        if not handle._board.live:
            raise AttachError("a fused delta is the same for all samples", fix='attach with `mode="live"`')
        self._sums, self._shifts = handle._sums, handle._board._shifts
        self.parameters = handle._sums.parameters
        self._table, self._lock = GainTable(self._sums, self._shifts), Lock()
        self._slices: dict[str, list[tuple[Shift, slice]]] = {}
        start = 0
        for shift, length in zip(self._shifts, self._table._lengths, strict=True):
            self._slices.setdefault(shift.component, []).append((shift, slice(start, start + length)))
            start += length
        self._size = start
        self._none: Tensor | None = None
        self._last: dict[str, tuple[list[Gains], list[Tensor]]] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of the gains of one δ."""
        return 4 * self._size

    def of(self, terms: Sequence[tuple[Delta, float]]) -> Gains:
        """Return the gains for Σ weight · δ, summed in float64 in the order given and clipped once.

        Args:
            terms: deltas with finite weights; what they shift beyond the attached layers is passed over.

        Raises:
            BaseMismatchError: one was made for another base.
            TensorError: a value is not valid, or a sum is too large.
        """
        flats = [(self._sums.flatten(part_of(delta, self.parameters)), weight) for delta, weight in terms]
        total = self._sums.total(flats) if flats else np.zeros(self._sums.size)
        return self._respond(total)

    @ordinary
    def _respond(self, total: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Gains:
        gains = torch.empty(self._size)
        with self._lock:  # the table's buffers are used again
            self._table._lay_out()
            self._table._respond(total, gains)
        return gains.to(self._shifts[0].gain.device)

    def sigmas(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """Return the singular values of the attached layers, descending, by parameter name; norms have none."""
        with self._lock:
            self._table._lay_out()
            floor = self._table._floor
            return {name: -floor[at] for name, at in self._sums.slices.items() if np.isfinite(floor[at]).all()}

    def none(self) -> Gains:
        """Return the gains of δ = 0."""
        if self._none is None:
            self._none = self._respond(np.zeros(self._sums.size))
        return self._none

    @contextmanager
    def rows(self, component: str, gains: Sequence[Gains]) -> Iterator[None]:
        """Let one forward of a component compute each of its rows with its own gains, while the block runs.

        Args:
            component: the component's name; one without attached layers is left as it is.
            gains: for each row of the batch the gains of its δ.
        """
        layers = self._slices.get(component, [])
        parts = self._parts(component, layers, gains) if layers else []
        batches = list({id(shift.batch): shift.batch for shift, _ in layers}.values())
        try:
            for batch in batches:
                batch.deltas, batch.size = len(gains), len(gains)
            for (shift, _), part in zip(layers, parts, strict=True):
                shift._buffers["rows"] = part  # much faster than the attribute
            yield
        finally:
            for shift, _ in layers:
                shift._buffers["rows"] = None
            _clear(batches)

    def _parts(self, component: str, layers: Sequence[tuple[Shift, slice]], gains: Sequence[Gains]) -> list[Tensor]:
        """Return for each layer its rows (S, R); those of the forward before are used again for the same samples."""
        last = self._last.get(component)
        if last is None or len(last[0]) != len(gains) or not all(map(is_, last[0], gains)):
            stacked = torch.stack(list(gains))
            parts = [stacked[:, place].contiguous() for _, place in layers]
            self._last[component] = last = (list(gains), parts)
        return last[1]


def _clear(batches: Sequence[Batch]) -> None:
    for batch in batches:
        batch.deltas, batch.size = 0, None
