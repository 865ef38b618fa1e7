"""Truncation: only the largest shifts of each parameter (spec, section 7.3; the paper's rank ablation)."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import encode
from svdiff_delta.format.lineage import Record
from svdiff_delta.format.parameter import Parameter

from .combine import combine_metadata


def truncate(delta: Delta, *, rank: int | None = None, energy: float | None = None) -> Delta:
    """Return δ with all but its largest |δ| set to 0 in each spectral parameter (the paper's rank ablation).

    A tied run is kept or dropped as a whole. Elementwise parameters stay as they are, and so do number formats, but I8
    becomes F32. It is |δ| that counts, not |Δσ| = |max(δ, −σ)|, for which the base would be needed.

    Args:
        delta: what to truncate.
        rank: how many shifts each parameter keeps at most.
        energy: the share of Σ δ² that each parameter keeps at least, in (0, 1].

    Raises:
        InputError: not exactly one of rank and energy, or one out of range.
    """
    if (rank is None) == (energy is None):
        raise InputError("truncate takes either a rank or an energy", fix="give one of them")
    if rank is not None and rank < 1:
        raise InputError(f"the rank must be at least 1, is {rank}")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise InputError(f"the energy must be within (0, 1], is {energy}")
    stored = {}
    for name, parameter in delta.metadata.parameters.items():
        values = delta[name].astype(np.float64)
        if parameter.kind == "elementwise":
            stored[name] = delta.stored[name]
            continue
        dtype = delta.dtype_of(name)
        kept = _most_energy(values, parameter, energy) if energy is not None else _largest(values, parameter, rank or 0)
        stored[name] = encode(kept, "F32" if dtype == "I8" else dtype)
    record = Record("truncate", {"rank": rank} if rank is not None else {"energy": energy})
    return Delta.from_stored(stored, combine_metadata([delta], delta.metadata.parameters, record))


def _units(values: NDArray[np.float64], parameter: Parameter) -> list[slice]:
    """Return tied runs and single indices that are not null, by descending |δ|; equal ones stay in order."""
    runs = dict(parameter.tied)
    units, index = [], 0
    while index < parameter.size - parameter.null:
        units.append(slice(index, runs.get(index, index) + 1))
        index = units[-1].stop
    return sorted(units, key=lambda unit: -abs(values[unit.start]))  # a stable sort


def _largest(values: NDArray[np.float64], parameter: Parameter, rank: int) -> NDArray[np.float64]:
    result, left = np.zeros_like(values), rank
    for unit in _units(values, parameter):
        length = unit.stop - unit.start
        if length <= left:
            result[unit] = values[unit]
            left -= length
    return result


def _most_energy(values: NDArray[np.float64], parameter: Parameter, energy: float) -> NDArray[np.float64]:
    units = _units(values, parameter)
    # In units of 2^-149 every F32 number is a whole one, so that nothing is rounded away beside a large δ.
    whole = [int(value) for value in np.ldexp(values, 149).tolist()]
    sums = list(accumulate((sum(value * value for value in whole[unit]) for unit in units), initial=0))
    numerator, denominator = energy.as_integer_ratio()
    result = np.zeros_like(values)
    for unit in units[: bisect_left(sums, -(-numerator * sums[-1] // denominator))]:
        result[unit] = values[unit]
    return result
