"""Measure the share of a change that δ carries over, of its norm and of a layer's output (spec, 7.8, 7.12)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum


@dataclass(frozen=True)
class Energy:
    """The energy of a weight's change, and the part of it that is carried over (spec, section 7.8).

    Attributes:
        whole: ‖ΔW‖², the squared Frobenius norm of what came in.
        kept: the same of what came out.
    """

    whole: float
    kept: float

    @property
    def captured(self) -> float:
        """The share that is kept; 1 where nothing changes."""
        return self.kept / self.whole if self.whole else 1.0


@dataclass(frozen=True)
class OutputEnergy:
    """The energy that a change adds to its layer's output, and the part that is carried over (spec, section 7.12).

    A share is `1 − Σ‖ΔWx − U diag(Δσ) Vᵀx‖² / Σ‖ΔWx‖²` over the inputs x; it may be negative.

    Attributes:
        whole: Σ‖ΔWx‖².
        plain: what of it δ would carry over that is the projection of ΔW.
        kept: what of it δ carries over that was calibrated.
    """

    whole: float
    plain: float
    kept: float

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of the plain and of the calibrated δ; 1 where nothing is added."""
        return (self.plain / self.whole, self.kept / self.whole) if self.whole else (1.0, 1.0)


def total_output(layers: Iterable[OutputEnergy]) -> OutputEnergy:
    """Return the output energy of several layers together."""
    found = list(layers)
    return OutputEnergy(*(fsum(getattr(layer, name) for layer in found) for name in ("whole", "plain", "kept")))


def total_energy(layers: Iterable[Energy]) -> Energy:
    """Return the energy of several weights together."""
    found = list(layers)
    return Energy(fsum(layer.whole for layer in found), fsum(layer.kept for layer in found))
