"""Fuse ΔW into the weights of a live model, which then runs at its own cost, and take it out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.errors import AttachError
from svdiff_delta.svd.fingerprint import PIECE
from svdiff_delta.svd.shifted_weight import write_shifted
from svdiff_delta.svd.side_by_side import run_costliest_first
from svdiff_delta.svd.workspace import Workspace

from .live_weight import unwatch
from .model_locks import writing
from .original_weights import kept_weight
from .stored_weight import words

if TYPE_CHECKING:
    from .targets import TargetLayer


class FusedPatch:
    """A weight that holds W + ΔW (spec, section 6.6).

    Args:
        place: the layer and its weight.

    Attributes:
        changed: whether the weight may be other than W.

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
        self._shift = np.zeros(place.parameter.size)
        self._written: tuple[torch.dtype, int] | None = None
        self._begun = self._over = self._busy = self.changed = False
        self._gate: Any = Lock()  # only threads of a pool take it: whatever interrupts them is not a signal

    def put(self) -> None:
        """Get ready to write; the weight is untouched until then. Without a file a copy of it is kept."""
        self._begun = True
        if not self._place.stored:
            kept = self._place.read().clone()
            self._place = replace(self._place, read=lambda: kept)

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

    @property
    def device(self) -> str:
        """The kind of device that the weight is on."""
        return self.weight.device.type

    @property
    def size(self) -> int:
        """The count of numbers in the weight."""
        return prod(self._place.parameter.shape)

    @property
    def cost(self) -> int:
        """About how many multiplications a change takes."""
        parameter = self._place.parameter
        return self.size * (parameter.size if parameter.kind == "spectral" else 1)

    def holds(self, shift: NDArray[np.float64]) -> bool:
        """Tell whether the weight has this δ (size,) already, in its own dtype."""
        if not np.array_equal(shift, self._shift):
            return False
        return not self.changed or (self._written is not None and self._written[0] == self.weight.dtype)

    def is_done(self, shift: NDArray[np.float64]) -> bool:
        """Tell whether nothing is left to be done for the weight to have this δ, and to notice what others change."""
        return not self._busy and self._written is not None and self.holds(shift)

    @property
    def is_original(self) -> bool:
        """True if the weight is W, and no thread that was left behind writes to it."""
        return not (self._busy or self.changed)

    def write(
        self,
        shift: NDArray[np.float64],
        space: Workspace | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Put W + U diag(max(δ, −σ)) Vᵀ into the weight, rounded once; W itself, bit for bit, where δ is 0.

        Whoever is interrupted in between may write again, or restore.

        Args:
            shift: δ (size,), projected.
            space: memory to use again; new memory if not given.
            wanted: asked when it is this thread's turn: what was interrupted twice may have left one behind.
        """
        with self._gate:
            self._busy = True  # said before anything is asked, so that nobody takes the weight for what it was
            try:
                if self._over or not wanted():
                    return
                if not self.holds(shift):
                    self._change(shift, space)
                elif self._written is None:
                    self._written = self._digest()
            finally:
                self._busy = False

    def _change(self, shift: NDArray[np.float64], space: Workspace | None) -> None:
        weight, original, shifted = self.weight, self._place.read(), bool(shift.any())
        ready = replace(self._place.prepared(), source=lambda: original) if shifted else None
        self.changed, self._written = True, None  # from here on what is in it is nobody's
        with writing([weight]):
            if ready is None:
                self._write_back(weight, original)
            else:
                write_shifted(ready, torch.from_numpy(shift), weight, space)
        self._shift, self.changed = shift.copy(), shifted
        self._written = self._digest()

    def _write_back(self, weight: Tensor, original: Tensor) -> None:
        """Put W into the weight, in pieces that stay in the cache."""
        step = max(1, PIECE // max(1, original[0].numel()))
        for part, place in zip(original.split(step), weight.split(step), strict=True):
            place.copy_(self._place.cast(part).to(place.dtype))

    def _digest(self) -> tuple[torch.dtype, int]:
        """Return dtype and sum of all bits of the weight: whoever adds to it changes that."""
        weight = self.weight
        whole, rest = words(weight)
        return weight.dtype, int(whole.sum()) + int(rest.sum(dtype=torch.int64))

    def check(self, *, force: bool = False) -> None:
        """Check that the weight is what was written, if anything was.

        Args:
            force: whether it does not matter.

        Raises:
            AttachError: something else has changed it since.
        """
        if self.changed and not force:
            self._check_written()

    def check_change(self, shift: NDArray[np.float64]) -> None:
        """Check that the weight is what was written, and that W can be read, before it gets another δ (size,).

        Raises:
            AttachError: something else has changed it since, W is not there any more, or the weight was offloaded.
        """
        if self.changed or not self.holds(shift):
            self._check_written()
        if not self.holds(shift):
            self._place.read()

    def _check_written(self) -> None:
        if self._written is None:
            return
        dtype, digest = self._digest()
        if dtype == self._written[0] and digest != self._written[1]:
            raise AttachError(
                f"{self.name}: the weight was changed after the delta was fused into it, by a LoRA perhaps",
                fix="fuse in the other order; `detach(force=True)` restores the base and drops what was added",
            )

    def read(self) -> None:
        """Read W, if anything was written.

        Raises:
            AttachError: it is not there any more, or the weight was offloaded.
        """
        if self.changed and self.weight is not None:
            self._original = self._place.read()

    def write_original(self) -> None:
        """Put W back, bit for bit, if anything was written; whoever is interrupted may call it again."""
        with self._gate:
            if self.changed:
                weight = self.weight
                with writing([weight]):
                    self._write_back(weight, self._place.read() if self._original is None else self._original)
                self.changed = False
            self._original = None

    def restore(self) -> None:
        """Let the layer be what it was; a second call does nothing."""
        if not self._begun:
            return
        self._over = True
        if not self.is_original:
            run_costliest_first({self.name: 1}, lambda *_: self.write_original())
        for module in self.modules:  # a check may have been interrupted
            unwatch(module.owner if isinstance(module, ExpertWeight) else module)
        self._original, self._begun = None, False
