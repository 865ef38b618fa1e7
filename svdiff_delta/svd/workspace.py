"""Memory that is used again for one weight after another: new pages cost as much as reading the weight does."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Float32 memory by purpose, as large as the largest weight needed so far, for one weight at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, what: str, shape: tuple[int, ...]) -> Tensor:
        """Return the memory for a purpose; what was in it before stands there until it is written over."""
        count, kept = prod(shape), self._kept.pop(what, None)
        if kept is None or kept.numel() < count:
            del kept  # so that the smaller one is given back first
            kept = torch.empty(count)
        self._kept[what] = kept
        return kept[:count].view(shape)
