"""Memory that is used again for one weight after another: new pages cost as much as reading the weight does."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Memory by purpose, as large as the largest weight needed so far, for one weight at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(
        self,
        what: str,
        shape: tuple[int, ...],
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the memory for a purpose; what was in it before stands there until it is written over.

        Args:
            what: the purpose.
            shape: the numbers there is to be room for.
            device: where; on the CPU if not given.
            dtype: of the numbers.
        """
        count, kept, device = prod(shape), self._kept.pop(what, None), device or torch.device("cpu")
        if kept is None or kept.numel() < count or kept.device != device or kept.dtype != dtype:
            del kept  # so that the smaller one is given back first
            kept = torch.empty(count, device=device, dtype=dtype)
        self._kept[what] = kept
        return kept[:count].view(shape)
