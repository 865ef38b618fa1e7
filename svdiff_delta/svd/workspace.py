"""Memory that is used again for one weight after another: new pages cost as much as reading the weight does."""

from __future__ import annotations

from math import prod
from typing import Final

import torch
from torch import Tensor

TURNS: Final = 2
"""Results that may be in use at a time: one is written while the next is made."""


class Workspace:
    """Float32 memory by purpose, as large as the largest weight needed so far.

    Intermediate values are overwritten by the next weight. Results take turns: what `result` returned is overwritten
    when it is asked for again in the same turn.

    Attributes:
        turn: which of the results is made now; `advance` goes on to the next one.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._kept: dict[str, Tensor] = {}

    def advance(self) -> None:
        """Go on to the next turn."""
        self.turn = (self.turn + 1) % TURNS

    def take(self, what: str, shape: tuple[int, ...]) -> Tensor:
        """Return memory for an intermediate value; what stands in it is left from before."""
        count, kept = prod(shape), self._kept.get(what)
        if kept is None or kept.numel() < count:
            self._kept.pop(what, None)
            del kept  # so that the smaller one is given back first
            kept = self._kept[what] = torch.empty(count)
        return kept[:count].view(shape)

    def result(self, what: str, shape: tuple[int, ...]) -> Tensor:
        """Return memory for a result, in this turn."""
        return self.take(f"{what} {self.turn}", shape)
