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
    """From one flat δ to the gains of all layers, in float64 and rounded once.

    Args:
        sums: how δ is laid out.
        shifts: the layers' shifts; several may follow one parameter.
    """

    def __init__(self, sums: Sums, shifts: Sequence[Shift]) -> None:
        self._sums, self._shifts = sums, shifts
        self._responses: list[Response] = []
        self._lay_out()

    def _lay_out(self) -> None:
        """Put the responses of all layers side by side; one that was cast to half precision has another."""
        responses = [shift.response for shift in self._shifts]
        if len(self._responses) == len(responses) and all(map(_same, responses, self._responses)):
            return
        self._responses = responses
        self._floor = np.full(self._sums.size, -np.inf)
        picks = []
        for shift, response in zip(self._shifts, responses, strict=True):
            place = self._sums.slices[shift.name]
            self._floor[place] = response.floor.numpy()
            size = place.stop - place.start
            picks.append(place.start + (np.arange(size) if response.pick is None else response.pick.numpy()))
        self._offset = np.concatenate([response.offset.numpy() for response in responses])
        self._slope = np.concatenate([response.slope.numpy() for response in responses])
        self._lengths = [len(pick) for pick in picks]
        pick = np.concatenate(picks)
        straight = len(pick) == self._sums.size and (pick == np.arange(len(pick))).all()
        self._pick = None if straight else pick

    def _gains(self, total: NDArray[np.float64]) -> Tensor:
        """Return the gains of all layers (G,) float32 for δ (D,)."""
        change = np.maximum(total, self._floor)
        gains = change if self._pick is None else change[self._pick]
        gains *= self._slope
        gains += self._offset
        return torch.from_numpy(gains.astype(np.float32))

    def write(self, total: NDArray[np.float64]) -> None:
        """Let all samples have this δ (D,)."""
        self._lay_out()
        parts = _Parts(self._gains(total), self._lengths)
        with torch.no_grad():
            for index, shift in enumerate(self._shifts):
                shift.gain.copy_(parts.on(shift.gain.device)[index])

    def write_rows(self, totals: Sequence[NDArray[np.float64]]) -> None:
        """Let every sample have its own δ (D,); several may be the same array."""
        self._lay_out()
        gains = {id(total): self._gains(total) for total in totals}
        parts = _Parts(torch.stack([gains[id(total)] for total in totals]), self._lengths)
        for index, shift in enumerate(self._shifts):
            shift.rows = parts.on(shift.gain.device)[index].contiguous()

    def clear_rows(self) -> None:
        """Let all samples have the same δ again."""
        for shift in self._shifts:
            shift.rows = None


class _Parts:
    """Gains cut into those of each layer, moved to a device once."""

    def __init__(self, gains: Tensor, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)
        self._cut = {gains.device: gains.split(self._lengths, dim=-1)}
        self._gains = gains

    def on(self, device: torch.device) -> Sequence[Tensor]:
        if device not in self._cut:
            self._cut[device] = self._gains.to(device).split(self._lengths, dim=-1)
        return self._cut[device]


def _same(a: Response, b: Response) -> bool:
    return a is b
