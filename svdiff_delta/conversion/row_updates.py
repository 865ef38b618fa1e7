"""Take a weight's rows out of an update of a larger layer, which holds the rows of several weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .lazy_tensors import Shape
from .weight_updates import LowRank, Update


@dataclass(frozen=True)
class Rows:
    """The rows of one weight in the update of a fused layer.

    Attributes:
        inner: the update of the layer, (rows of all its weights, columns).
        start, stop: the rows.
        total: the number of all rows.
        whole: returns the fused layer's own weight, in its own order of rows.
        swap: whether the halves of these rows change places.
    """

    inner: Update
    start: int
    stop: int
    total: int
    whole: Callable[[], Tensor]
    swap: bool = False

    def check(self) -> None:
        """Raise TensorError unless the tensors of the layer's update fit each other."""
        self.inner.check()

    def misfit(self, shape: Shape) -> str:
        """Return why the layer's update does not fit a layer of which a weight of this shape is a part."""
        return self.inner.misfit((self.total, *shape[1:]))

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW of these rows, float64."""
        found = self._rows()
        if self.swap:
            found = torch.cat([*reversed(found.chunk(2))])
        return found.reshape(weight.shape)

    def _rows(self) -> Tensor:
        """Return these rows of ΔW in the layer's own order; of low-rank factors no other row is multiplied."""
        inner = self.inner
        if isinstance(inner, LowRank) and inner.mid is None and not inner.transposed and inner.groups == 1:
            up = inner.up.read().flatten(1)[self.start : self.stop]
            return up @ inner.down.read().flatten(1) * inner.scale
        return inner.change(self.whole())[self.start : self.stop]


def swapped(weight: Tensor) -> Tensor:
    """Return a weight with its halves of rows in the other order."""
    return torch.cat([*reversed(weight.chunk(2))])
