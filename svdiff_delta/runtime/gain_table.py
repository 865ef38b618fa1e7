"""Compute the gains of all shifted layers of a model at once from one flat δ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .flat_deltas import Sums
from .gain_map import Response
from .model_locks import writing
from .shift import Shift


class GainTable:
    """The map from one flat δ (D,) to the gains of all layers in a row (G,), in float64 and rounded once.

    Args:
        sums: how δ is laid out.
        shifts: the layers' shifts; several may follow one parameter.
    """

    def __init__(self, sums: Sums, shifts: Sequence[Shift]) -> None:
        self._sums, self._shifts = sums, shifts
        self._responses: list[Response] = []
        self._buffers = [shift._buffers for shift in shifts]
        self._seen: list[Tensor | None] = []
        self._grouped: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        """Put the responses of all layers side by side, unless they are those from before; a cast may change one."""
        responses = [shift.response for shift in self._shifts]
        if len(self._responses) == len(responses) and all(map(is_, responses, self._responses)):
            return
        self._responses = responses
        self._floor = np.full(self._sums.size, -np.inf)
        picks = []
        for shift, response in zip(self._shifts, responses, strict=True):
            place = self._sums.slices[shift.name]
            self._floor[place] = response.floor.numpy()
            size = place.stop - place.start
            picks.append(place.start + (np.arange(size) if response.pick is None else response.pick.numpy()))
        self._pick = np.concatenate(picks)
        self._offset = np.concatenate([response.offset.numpy() for response in responses])
        self._slope = np.concatenate([response.slope.numpy() for response in responses])
        self._lengths = [len(pick) for pick in picks]
        order = {name: index for index, name in enumerate(self._sums.slices)}
        self._order = [order[shift.name] for shift in self._shifts]
        self._starts = [place.start for place in self._sums.slices.values()]
        # Every swap writes these anew: fresh memory would take longer than the sums.
        self._change, self._wide = np.empty(self._sums.size), np.empty(len(self._pick))
        self._gains = torch.empty(len(self._pick))
        self._parts = self._gains.split(self._lengths)

    def _respond(self, total: NDArray[np.float64], gains: Tensor) -> None:
        """Write the gains (G,) for δ (D,) float64 into a float32 tensor on the CPU."""
        np.maximum(total, self._floor, out=self._change)
        np.take(self._change, self._pick, out=self._wide, mode="clip")
        np.multiply(self._wide, self._slope, out=self._wide)
        np.add(self._wide, self._offset, out=self._wide)
        gains.numpy()[:] = self._wide

    def write(self, total: NDArray[np.float64]) -> None:
        """Let all samples have this δ (D,)."""
        self._lay_out()
        idle = (~np.logical_or.reduceat(total != 0, self._starts)).tolist()
        for shift, place in zip(self._shifts, self._order, strict=True):
            shift.__dict__["idle"] = idle[place]  # much faster than the attribute
        self._respond(total, self._gains)
        for device, (indices, gains) in self._targets().items():
            parts = self._parts if device == self._gains.device else self._gains.to(device).split(self._lengths)
            with writing(gains):
                torch._foreach_copy_(gains, [parts[index] for index in indices])

    def _targets(self) -> Mapping[torch.device, tuple[list[int], list[Tensor]]]:
        """Return numbers of layers and their gains by device; what `.to()` or offloading put in their place is seen."""
        gains = [buffers["gain"] for buffers in self._buffers]  # much faster than the attributes
        if len(gains) != len(self._seen) or not all(map(is_, gains, self._seen)):
            self._seen, self._grouped = gains, {}
            for index, gain in enumerate(cast("list[Tensor]", gains)):
                indices, found = self._grouped.setdefault(gain.device, ([], []))
                indices.append(index)
                found.append(gain)
        return self._grouped

    def write_rows(self, totals: Sequence[NDArray[np.float64]]) -> None:
        """Let every sample have its own δ (D,)."""
        self._lay_out()
        rows = torch.empty(len(totals), len(self._pick))
        for row, total in zip(rows, totals, strict=True):
            self._respond(total, row)
        parts = {rows.device: rows.split(self._lengths, dim=1)}
        for index, shift in enumerate(self._shifts):
            device = shift.gain.device
            if device not in parts:
                parts[device] = rows.to(device).split(self._lengths, dim=1)
            shift.rows = parts[device][index].contiguous()

    def clear_rows(self) -> None:
        """Let all samples have the same δ again."""
        for shift in self._shifts:
            shift.rows = None
