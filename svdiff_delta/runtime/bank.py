"""The gains of all shifted layers of a model, calculated at once and handed out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .layers import Shift
from .response import Response
from .sums import Sums


class Bank:
    """From one flat δ (D,) to the gains of all layers, in float64 and rounded once.

    Gains follow δ in its own order as far as they can. Behind them stand those that follow an entry once more: of a
    basis's stored tail, and of layers that are tied to one before.

    Args:
        sums: how δ is laid out.
        shifts: the layers' shifts; several may follow one parameter.
    """

    def __init__(self, sums: Sums, shifts: Sequence[Shift]) -> None:
        self._sums, self._shifts = sums, shifts
        self._responses: list[Response] = []
        self._lay_out()

    def _lay_out(self) -> None:
        """Put the responses of all layers side by side, unless they are those from before; a cast may change one."""
        responses = [shift.response for shift in self._shifts]
        if len(self._responses) == len(responses) and all(
            a is b for a, b in zip(responses, self._responses, strict=True)
        ):
            return
        self._responses = responses
        size = self._sums.size
        self._floor = np.full(size, -np.inf)
        offset, slope, more = [np.zeros(size)], [np.zeros(size)], [np.arange(0)]
        self._cuts: list[list[slice]] = []
        end, seen = size, set()
        for shift, response in zip(self._shifts, responses, strict=True):
            place, cuts, first = self._sums.slices[shift.name], [], 0
            pick = np.arange(place.stop - place.start) if response.pick is None else response.pick.numpy()
            if shift.name not in seen:
                seen.add(shift.name)
                first = place.stop - place.start  # every pick begins with each entry in its place
                offset[0][place], slope[0][place] = response.offset[:first].numpy(), response.slope[:first].numpy()
                self._floor[place] = response.floor.numpy()
                cuts.append(place)
            if first < len(pick):
                more.append(place.start + pick[first:])
                offset.append(response.offset[first:].numpy())
                slope.append(response.slope[first:].numpy())
                cuts.append(slice(end, end + len(pick) - first))
                end += len(pick) - first
            self._cuts.append(cuts)
        self._offset, self._slope, self._more = np.concatenate(offset), np.concatenate(slope), np.concatenate(more)
        # Every swap writes these anew: fresh memory would take longer than the sums.
        self._wide, self._gains = np.empty(end), torch.empty(end)

    def _respond(self, total: NDArray[np.float64], gains: Tensor) -> None:
        """Write the gains for δ (D,) float64 into a float32 tensor on the CPU."""
        size = self._sums.size
        np.maximum(total, self._floor, out=self._wide[:size])
        np.take(self._wide[:size], self._more, out=self._wide[size:], mode="clip")
        self._wide *= self._slope
        self._wide += self._offset
        gains.numpy()[:] = self._wide

    def write(self, total: NDArray[np.float64]) -> None:
        """Let all samples have this δ (D,)."""
        self._lay_out()
        self._respond(total, self._gains)
        moved = _Moved(self._gains)
        with torch.no_grad():
            for shift, cuts in zip(self._shifts, self._cuts, strict=True):
                gain, start = shift.gain, 0
                gains = moved.to(gain.device)
                for cut in cuts:
                    stop = start + cut.stop - cut.start
                    gain[start:stop].copy_(gains[cut])
                    start = stop

    def write_rows(self, totals: Sequence[NDArray[np.float64]]) -> None:
        """Let every sample have its own δ (D,)."""
        self._lay_out()
        rows = torch.empty(len(totals), len(self._gains))
        for row, total in zip(rows, totals, strict=True):
            self._respond(total, row)
        moved = _Moved(rows)
        for shift, cuts in zip(self._shifts, self._cuts, strict=True):
            gains = moved.to(shift.gain.device)
            shift.rows = torch.cat([gains[:, cut] for cut in cuts], dim=1)

    def clear_rows(self) -> None:
        """Let all samples have the same δ again."""
        for shift in self._shifts:
            shift.rows = None


class _Moved:
    """A tensor on every device that asks for it, moved there once."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._copies = {tensor.device: tensor}

    def to(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self._tensor.to(device)
        return self._copies[device]
