"""Weights with ΔW in them: the model's own forward at its own cost, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.errors import AttachError
from svdiff_delta.prepare import Prepared

from .live_weight import SLOT
from .originals import kept_weight
from .places import Place

WORDS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FusedSite:
    """A weight that holds W + ΔW (spec, section 6.6).

    Args:
        place: the layer and its weight.

    Raises:
        AttachError: the weight is offloaded.
    """

    def __init__(self, place: Place) -> None:
        if place.offloaded:
            raise AttachError(
                f"{place.name}: the live weight is offloaded, nothing can be fused into it", fix='use `mode="live"`'
            )
        self.name, self.component = place.name, place.component
        self.modules = (place.module, *place.twins)
        self._live, self._prepared = _readers(place)
        self._written = self._digest()
        for module in self.modules:
            setattr(module, SLOT, None)

    @property
    def weight(self) -> Tensor:
        """The layer's weight, where its values are kept: moves and offloading may put another one in its place.

        Raises:
            AttachError: it was offloaded since, and nobody says to where.
        """
        found = kept_weight(self.modules[0])
        if found is None or found.device.type == "meta":
            raise AttachError(
                f"{self.name}: the weight was offloaded after the delta was fused into it",
                fix='undo the offloading first, or attach with `mode="live"`',
            )
        return found

    def write(self, shift: NDArray[np.float64]) -> None:
        """Put W + U diag(max(δ, −σ)) Vᵀ into the weight, rounded once; W itself, bit for bit, where δ is 0.

        Args:
            shift: δ (size,), projected.
        """
        if shift.any():
            prepared = self._prepared()
            change = prepared.delta_weight(torch.from_numpy(shift))
            shifted = prepared.weight.to(change.dtype) + change
        else:
            shifted = self._live()
        self.weight.copy_(shifted.to(self.weight.dtype))
        self._written = self._digest()

    def _digest(self) -> tuple[torch.dtype, int]:
        """Return dtype and sum of all bits of the weight: whoever adds to it changes that."""
        words = self.weight.contiguous().view(WORDS[self.weight.itemsize])
        return self.weight.dtype, int(words.sum(dtype=torch.int64))

    def check(self, *, force: bool = False) -> None:
        """Check that the weight is what was written.

        Args:
            force: whether it does not matter.

        Raises:
            AttachError: something else has changed it since.
        """
        if force:
            return
        dtype, digest = self._digest()
        if dtype == self._written[0] and digest != self._written[1]:
            raise AttachError(
                f"{self.name}: the weight was changed after the delta was fused into it, by a LoRA perhaps",
                fix="fuse in the other order; `detach(force=True)` restores the base and drops what was added",
            )

    def restore(self) -> None:
        """Put W back, bit for bit."""
        self.weight.copy_(self._live().to(self.weight.dtype))
        for module in self.modules:
            delattr(module, SLOT)


def _readers(place: Place) -> tuple[Callable[[], Tensor], Callable[[], Prepared]]:
    """Return what reads the weight as it was live, and makes it ready for δ; without a file a copy is kept."""
    if place.stored:
        return place.live, place.prepared
    kept = place.live().clone()
    return (lambda: kept), (lambda: Prepared(place.parameter, place.prepared().basis, lambda: kept))
