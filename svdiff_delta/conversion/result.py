"""Report a conversion: its result, and how much of the change of each weight it captured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import STORED_DTYPES, is_stored_dtype
from svdiff_delta.svd.energy import Energy, OutputEnergy, total_energy

DECIMALS: Final = 6
"""Of the captured energy in a lineage: not those that depend on the order of sums."""

SHOWN: Final = 3
"""Weights that an error names before it counts the others."""


class Captured:
    """The share of a change that its conversion captured, of all layers together.

    Attributes:
        layers: the energy of each parameter that was converted, by sorted name.
    """

    layers: Mapping[str, Energy]

    @property
    def energy(self) -> Energy:
        """The energy of all layers together."""
        return total_energy(self.layers.values())

    @property
    def captured(self) -> float:
        """The share of the whole change that is carried over."""
        return self.energy.captured


@dataclass(frozen=True, kw_only=True)
class Converted(Captured):
    """The members that the results of both ways of converting have; `Conversion` says what they are."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    unchanged: int = 0
    output: Path | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    outputs: Mapping[str, OutputEnergy] = field(default_factory=dict)
    retained: Mapping[str, Energy] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion(Converted):
    """The result of a conversion.

    Attributes:
        delta: the delta that came out, or that another dialect was made of.
        layers: the energy of each parameter that was converted, by sorted name.
        energy: that of all layers together.
        captured: the share of the whole change that is carried over.
        size: the bytes of the file in another dialect, whether it was written or not; None for a delta.
        left_out: what could not be carried over, with the reason; empty unless that was allowed.
        unchanged: weights in which nothing changes, and shifts that were carried over bit for bit.
        output: what was written; None if nothing was.
        ranks: the rank of each parameter in a low-rank copy.
        remarks: what was assumed, and what to know about the result.
        outputs: the output energy of each parameter that was calibrated.
        retained: what of the delta's change the output holds, by parameter, where one dialect became another by way of
            a delta; `layers` then says what the delta captured of the input's.
    """

    delta: Delta
    layers: Mapping[str, Energy]
    size: int | None = None


@dataclass(frozen=True)
class DirectConversion(Converted):
    """The result of a direct conversion; the other members have the meaning that those of `Conversion` have.

    Attributes:
        layers: of each parameter ‖ΔW‖², and what of it the output holds.
        size: the bytes of the file.
    """

    layers: Mapping[str, Energy]
    size: int = 0


def recorded_share(layers: Iterable[Energy]) -> float:
    """Return the share that all layers together captured, as a lineage has it."""
    return round(total_energy(layers).captured, DECIMALS)


def check_arguments(min_energy: float, dtype: str) -> None:
    """Raise InputError unless the least energy is a share, and δ may be stored in a number format."""
    if not is_stored_dtype(dtype):
        raise InputError(f"there is no number format {dtype!r}", fix=f"use one of {', '.join(STORED_DTYPES)}")
    if not 0.0 <= min_energy <= 1.0:
        raise InputError(f"the least captured energy must be within [0, 1], is {min_energy}")


def check_captured(layers: Iterable[Energy], min_energy: float) -> None:
    """Raise InputError if a delta captured less than the least share of a change, all layers together."""
    captured = total_energy(layers).captured
    if captured < min_energy:
        raise InputError(
            f"only {captured:.2%} of the change is captured, less than the least share of {min_energy:.2%}: a shift "
            "can only stretch what the base has, and the rest of this change is something else",
            fix="lower `min_energy` to take it nevertheless, or go on sharing the change as it is",
        )


def check_retained(layers: Iterable[Energy], min_energy: float) -> None:
    """Raise InputError if a copy of a delta retained less than the least share of its change, all layers together."""
    retained = total_energy(layers).captured
    if retained < min_energy:
        raise InputError(
            f"only {retained:.2%} of the change is retained, less than the least share of {min_energy:.2%}",
            fix="give a higher `rank` or `energy` or a wider `dtype`, or lower `min_energy`",
        )


def check_left_out(left_out: Mapping[str, str], what: str, *, allow_unmatched: bool, hint: str = "") -> None:
    """Raise InputError if weights cannot be carried over and nobody allowed to leave them out.

    Args:
        left_out: reasons by parameter.
        what: what the parameters are of.
        allow_unmatched: whether they may be left out.
        hint: what may be the reason of it all.
    """
    if not left_out or allow_unmatched:
        return
    shown = ", ".join(f"{name} ({reason})" for name, reason in sorted(left_out.items())[:SHOWN])
    more = f", and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    raise InputError(
        f"{what}: {counted(len(left_out), 'weight')} cannot be carried over{hint}: {shown}{more}",
        fix="leave them out with `allow_unmatched=True`, which lists them",
    )
