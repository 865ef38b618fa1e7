"""Sum what a mix says, as the board paints it, and say before that whether numbers become too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import LARGEST
from svdiff_delta.ops.totals import Totals
from svdiff_serve.errors import RefusedError

from .mix import Mix
from .shelf import Shelf

State = Literal["ok", "warn", "refused"]

HALF: Final = LARGEST["F16"]


@dataclass(frozen=True)
class Check:
    """What is to be known of a mix before it is painted.

    Attributes:
        state: "ok"; "warn" where it may be too large for half precision; "refused" where it cannot be painted.
        message: why, in a sentence; empty if it is ok.
        largest: the largest |δ| of the sum; None where that is no number.
        top: the largest singular value σ + δ that it gives; None where none is known.
        clipped: how many σ + δ lie below 0, so that the ReLU makes 0 of them.
        where: the parameter that is meant.
    """

    state: State
    message: str
    largest: float | None
    top: float | None
    clipped: int
    where: str | None

    def json(self) -> JSON:
        """Return it as the page gets it."""
        return asdict(self)


def totals_of(shelf: Shelf, shares: Sequence[tuple[Mix, float]]) -> Totals:
    """Return the weighted sum of mixes, each as far as its share, in float64.

    Raises:
        UnknownDeltaError, RefusedError: a δ is not there, or a selector names nothing.
    """
    totals = Totals({})
    for mix, share in shares:
        for opened, term in shelf.terms(mix):
            try:
                totals.add_by_name(opened.delta, opened.factors(term.weights(), share))
            except DeltaError as error:
                raise RefusedError(error.message, fix=error.fix, field="mix") from None
    return totals


def summed(shelf: Shelf, shares: Sequence[tuple[Mix, float]], known: Totals | None = None) -> Delta | None:
    """Return the weighted sum of mixes as one δ, without a lineage; None if no δ has a share.

    Args:
        shelf: the deltas.
        shares: mixes, each with its share.
        known: the sum of the first mix alone, if it is known already.

    Raises:
        UnknownDeltaError: a δ is not there.
        RefusedError: a selector names nothing, or the sum is too large.
    """
    used = [(mix, share) for mix, share in shares if share and mix.terms]
    if not used:
        return None
    alone = known is not None and used == [(shares[0][0], 1.0)]
    totals = known if known is not None and alone else totals_of(shelf, used)
    about = shelf.open(used[0][0].terms[0].name).delta.metadata
    try:
        return totals.result(replace(about, parameters=totals.parameters, lineage=None, training=None), "F32")
    except DeltaError as error:
        raise RefusedError(error.message, fix="use smaller weights", field="mix") from None


def check_sum(shelf: Shelf, mix: Mix, *, half: bool) -> Check:
    """Return what is to be known of a mix; as `check_totals`.

    Raises:
        UnknownDeltaError, RefusedError: as `totals_of`.
    """
    return check_totals(totals_of(shelf, [(mix, 1.0)]), shelf.service.live.sigmas(), half=half)


def check_totals(totals: Totals, sigmas: Mapping[str, NDArray[np.float64]], *, half: bool) -> Check:
    """Return what is to be known of the sum of a mix.

    Args:
        totals: the sum.
        sigmas: the base's singular values by parameter name.
        half: whether the model computes in half precision itself.
    """
    found = [_look(name, totals[name], sigmas) for name in totals.parameters]
    largest = max(found, key=lambda look: look.largest, default=_Look("", 0.0, -np.inf, 0))
    top = max(found, key=lambda look: look.top, default=largest)
    clipped = sum(look.clipped for look in found)
    known = None if top.top == -np.inf else top.top

    def check(state: State, message: str, where: str | None) -> Check:
        numbers = (_number(largest.largest), None if known is None else _number(known))
        return Check(state, message, *numbers, clipped, where)

    if not largest.largest <= LARGEST["F32"]:
        message = f"{largest.name}: δ times its weights is too large for any number format: use smaller weights"
        return check("refused", message, largest.name)
    if largest.largest <= HALF and (known is None or known <= HALF):
        return check("ok", "", None)
    reach, where = max((largest.largest, largest.name), (known or 0.0, top.name))
    message = f"{where}: the mix reaches {reach:,.0f}, and half precision (F16) ends at {HALF:,.0f}"
    if half:
        return check("refused", f"{message}: use smaller weights, or serve the base in F32", where)
    return check("warn", f"{message}: programs that compute in it will paint noise; use smaller weights", where)


@dataclass(frozen=True)
class _Look:
    name: str
    largest: float
    top: float
    clipped: int


def _look(name: str, total: NDArray[np.float64], sigmas: Mapping[str, NDArray[np.float64]]) -> _Look:
    largest = float(np.abs(total).max(initial=0.0))
    if not isfinite(largest):
        return _Look(name, np.inf, -np.inf, 0)
    sigma = sigmas.get(name)
    if sigma is None:
        return _Look(name, largest, -np.inf, 0)
    moved = sigma + total
    return _Look(name, largest, float(moved.max(initial=-np.inf)), int((moved < 0).sum()))


def _number(value: float) -> float | None:
    return value if isfinite(value) else None
