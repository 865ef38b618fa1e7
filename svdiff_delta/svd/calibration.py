"""Compute δ from the change of a weight and the inputs that its layer meets (spec, section 7.12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import project
from svdiff_delta.format.parameter import Parameter

from .decomposition import Basis, matricize
from .energy import Energy, OutputEnergy
from .prepare import Prepared
from .projection import clipped, coordinates_of, squared_norm

FLOOR: Final = 1e-12
"""Of Σ‖x‖²: a Σ(vᵢᵀx)² at most this large is rounding, as inputs and vectors are float32."""


@dataclass(frozen=True)
class Factors:
    """A weight's change and singular vectors, as its layer's inputs meet them; float32, matricized.

    Attributes:
        parameter: the weight.
        right: Vᵀ (K, columns).
        left: U (rows, K).
        change: ΔW (rows, columns).
    """

    parameter: Parameter
    right: Tensor
    left: Tensor
    change: Tensor


@dataclass(frozen=True)
class Moments:
    """The sums over a layer's inputs x on which the best δ depends, in float64.

    Attributes:
        cross: Σ(uᵢᵀΔWx)(vᵢᵀx), (K,).
        square: Σ(vᵢᵀx)², (K,).
        change: Σ‖ΔWx‖².
        inputs: Σ‖x‖².
    """

    cross: NDArray[np.float64]
    square: NDArray[np.float64]
    change: float
    inputs: float


@dataclass(frozen=True)
class Probe:
    """A layer whose inputs are to be measured.

    Attributes:
        bytes: about how much memory its factors take.
        make: makes them.
    """

    bytes: int
    make: Callable[[], Factors]


@dataclass(frozen=True)
class Calibration:
    """A measurement of the inputs of layers.

    Attributes:
        collect: runs the base, and returns the moments of layers by parameter name; layers that it cannot measure, or
            that were never run, are missing.
        facts: what a lineage says of it.
        remarks: what was assumed.
    """

    collect: Callable[[Mapping[str, Probe]], Mapping[str, Moments]]
    facts: Mapping[str, JSON]
    remarks: tuple[str, ...] = ()


def bytes_of(shape: Sequence[int], axis: int) -> int:
    """Return how many bytes the factors of a weight take."""
    rows = shape[axis]
    columns = prod(shape) // rows
    return 4 * (rows * columns + min(rows, columns) * (rows + columns))


def factors_of(prepared: Prepared, change: Tensor) -> Factors:
    """Return the factors of a spectral parameter and of ΔW in its own shape."""
    basis, axis = cast("Basis", prepared.basis), prepared.parameter.axis
    long = basis.long_rows(matricize(prepared.rounded, axis))
    right, left = (long, basis.factor.T) if basis.left else (basis.factor, long.T)
    return Factors(prepared.parameter, right, left, matricize(change, axis).float())


def calibrate_change(
    prepared: Prepared, change: Tensor, moments: Moments
) -> tuple[NDArray[np.float64], Energy, OutputEnergy]:
    """Return the δ whose ΔW does to the inputs what is nearest to a change, and how much of it that is.

    `δᵢ = E[(uᵢᵀΔWx)(vᵢᵀx)] / E[(vᵢᵀx)²]`, the ratio of the sums over a tied run, and at least −σᵢ: of all valid δ the
    one with the smallest E‖ΔWx − U diag(max(δ, −σ)) Vᵀx‖². Where the inputs say nothing of δᵢ it is uᵢᵀ ΔW vᵢ.

    Args:
        prepared: the weight, spectral.
        change: ΔW in the weight's own shape.
        moments: of the layer's inputs.

    Raises:
        InputError: the moments are not finite.
    """
    parameter = prepared.parameter
    if not np.isfinite([*moments.cross, *moments.square, moments.change, moments.inputs]).all():
        raise InputError("the inputs of the layer hold NaN or infinity", fix="run the base in float32")
    found = coordinates_of(prepared, change)
    plain = clipped(prepared, project(parameter, found))
    values = clipped(prepared, project(parameter, _ratios(parameter, moments, project(parameter, found))))
    whole = squared_norm(change)
    kept = float(2 * values @ found - values @ values)  # ‖ΔW‖² less ‖ΔW − U diag(δ) Vᵀ‖²
    output = OutputEnergy(moments.change, _explained(plain, moments), _explained(values, moments))
    return values, Energy(whole, min(whole, max(0.0, kept))), output


def _ratios(parameter: Parameter, moments: Moments, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Σ(uᵢᵀΔWx)(vᵢᵀx) / Σ(vᵢᵀx)² over each run of equal shifts; the plain value where that says nothing."""
    cross, square = moments.cross.copy(), moments.square.copy()
    # One δ for a run: the least squares of the run are the ratio of sums, not the mean of ratios.
    for first, last in parameter.tied:
        run = slice(first, last + 1)
        cross[run], square[run] = cross[run].sum(), square[run].sum()
    # Directions that the inputs hardly enter would give a ratio of two roundings.
    told = square > FLOOR * moments.inputs
    return np.divide(cross, square, out=plain.copy(), where=told)


def _explained(shift: NDArray[np.float64], moments: Moments) -> float:
    """Return Σ‖ΔWx‖² less Σ‖ΔWx − U diag(δ) Vᵀx‖²."""
    return float(2 * shift @ moments.cross - shift**2 @ moments.square)
