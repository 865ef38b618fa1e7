"""Fuse ΔW into the weights of a live model, which then runs at its own cost, and take it out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.errors import AttachError
from svdiff_delta.svd.prepare import Prepared

from .live_weight import READ, own_class
from .model_locks import writing
from .original_weights import kept_weight
from .targets import TargetLayer

WORDS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FusedPatch:
    """A weight that holds W + ΔW (spec, section 6.6).

    Args:
        place: the layer and its weight.

    Raises:
        AttachError: the weight is offloaded.
    """

    def __init__(self, place: TargetLayer) -> None:
        if place.offloaded:
            raise AttachError(
                f"{place.name}: the live weight is offloaded, nothing can be fused into it", fix='use `mode="live"`'
            )
        self.name, self.component = place.name, place.component
        self.modules = (place.module, *place.twins)
        self._place = place
        self._original: Tensor | None = None
        self._written: tuple[torch.dtype, int] | None = None
        self._begun = self._touched = False

    def put(self) -> None:
        """Get ready to write; the weight is untouched until then."""
        self._begun = True
        self._read, self._prepared = _readers(self._place)
        self._written = self._digest()

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
            shifted = self._place.cast(self._read())
        self._copy(shifted)

    def _copy(self, values: Tensor) -> None:
        """Put values into the weight; whoever is interrupted in between may write again, or restore."""
        weight = self.weight
        self._touched, self._written = True, None
        with writing([weight]):
            weight.copy_(values.to(weight.dtype))
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
        if force or self._written is None:
            return
        dtype, digest = self._digest()
        if dtype == self._written[0] and digest != self._written[1]:
            raise AttachError(
                f"{self.name}: the weight was changed after the delta was fused into it, by a LoRA perhaps",
                fix="fuse in the other order; `detach(force=True)` restores the base and drops what was added",
            )

    def look(self) -> None:
        """Check that W can be read.

        Raises:
            AttachError: it is not there any more, or the weight was offloaded.
        """
        if self.weight is not None:
            self._read()

    def read(self) -> None:
        """Read W, if anything was written.

        Raises:
            AttachError: it is not there any more, or the weight was offloaded.
        """
        if self._touched:
            self.look()
            self._original = self._read()

    def restore(self) -> None:
        """Put W back, bit for bit, if anything was written."""
        if not self._begun:
            return
        if self._touched:
            self._copy(self._place.cast(self._read() if self._original is None else self._original))
            self._touched = False
        for module in self.modules:  # a check may have been interrupted
            module.__class__ = own_class(module)
            module.__dict__.pop(READ, None)
        self._original, self._begun = None, False


def _readers(place: TargetLayer) -> tuple[Callable[[], Tensor], Callable[[], Prepared]]:
    """Return what reads the weight, and makes it ready for δ; without a file a copy is kept."""
    if place.stored:
        return place.read, place.prepared
    kept = place.read().clone()
    return (lambda: kept), (lambda: Prepared(place.parameter, place.prepared().basis, lambda: kept))
