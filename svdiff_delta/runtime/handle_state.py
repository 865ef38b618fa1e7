"""Hold the deltas of a live model, and put what is active on it: a change that fails leaves all as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.delta import Delta

from .flat_deltas import Flat

if TYPE_CHECKING:
    from .attached_model import AttachedModel


class HandleState:
    """The deltas on a live model by name, with weights and scale, as `Handle` lets users change them.

    Args:
        board: the shifted layers.
        deltas: the deltas by name, all active.
        scale: factor on all.
        locks: the locks of the models.
        weights: the weights by name; 1 for those that are not there.
    """

    def __init__(
        self,
        board: AttachedModel,
        deltas: Mapping[str, Delta],
        scale: float,
        locks: Sequence[Any],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._board, self._sums, self._trained, self.locks = board, board.sums, board.trained, locks
        self._held: dict[str, Flat] = {name: self._sums.flatten(delta) for name, delta in deltas.items()}
        self._active: dict[str, float] = dict.fromkeys(self._held, 1.0) | dict(weights or {})
        self._scale, self._enabled = finite(scale, "the scale"), True
        self._samples: list[dict[str, float]] = []
        self._buffer = np.empty(self._sums.size)
        self._write()

    def _change(self, **state: Any) -> None:
        """Let some of the state be other than it is, on the model too; what fails changes nothing."""
        before, kept = {key: getattr(self, key) for key in state}, self._board.kept()
        try:
            self._board.begun = False
            self.__dict__.update(state)
            self._write()
        except BaseException:
            self.__dict__.update(before)
            self._write_again(kept)
            raise

    def _write(self, *, check: bool = True) -> None:
        """Put what is active on the model; everything is read and checked first."""
        total = self._total(self._active if self._enabled else {}, out=self._buffer)
        rows = [self._total(sample if self._enabled else {}) for sample in self._samples]
        if check:
            self._board.check(total)
        self._board.write(total, rows)

    def _write_again(self, kept: Mapping[str, Tensor]) -> None:
        """Put what was active before on the model, if anything was written since."""
        if self._board.begun:
            if kept:
                self._board.put_back(kept)
            else:
                self._write(check=False)

    def _total(self, weights: Mapping[str, float], out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        return self._sums.total([(self._held[name], factor) for name, factor in self._factors(weights).items()], out)

    def _factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        return {name: self._scale * weight for name, weight in weights.items()}

    def _parts(self, total: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {name: self._sums.part(total, name) for name in self._sums.parameters}

    def _trained_values(self) -> dict[str, NDArray[np.float32]]:
        return {name: shift.full().detach().float().cpu().numpy() for name, shift in self._trained.items()}

    def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return weights by name if there are such deltas, and they are finite."""
        for name, weight in weights.items():
            if name not in self._held:
                raise InputError(
                    f"there is no delta {name!r}, there are {', '.join(map(repr, self._held)) or 'none'}",
                    fix="`add` it under this name first",
                )
            finite(weight, f"the weight of {name!r}")
        return {name: float(weight) for name, weight in weights.items()}

    def _check_attached(self) -> None:
        claim = self._board.claim
        if claim.gone:
            raise AttachError("the delta was detached", fix="attach it again")
        if not claim.whole:
            raise AttachError("the delta is half off, since detaching it was interrupted", fix="call `detach` again")

    def _check_fixed(self) -> None:
        self._check_attached()
        if self._trained:
            raise AttachError(
                "the delta is being trained", fix="attach what `handle.delta()` returns, without `trainable`"
            )


def finite(value: float, what: str) -> float:
    """Return a number; raise InputError naming what it is if it is not finite."""
    if not isfinite(value):
        raise InputError(f"{what} must be a finite number, is {value}")
    return float(value)
