"""Arithmetic on deltas: pure functions, float64 sums in the order given, one rounding at the end (spec, section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ._json import JSON
from .codec import LARGEST, Stored, StoredDtype, encode
from .combine import Combined, combine_metadata
from .delta import Delta, check_range
from .errors import InputError
from .file import identify
from .lineage import Record
from .parameter import Parameter
from .totals import Totals
from .weights import Weight, as_weight


def add(
    *deltas: Delta, weights: Sequence[float | Mapping[str, float] | Weight] | None = None, dtype: StoredDtype = "F32"
) -> Delta:
    """Return Σ wᵢ δᵢ (Eq. 4; its ReLU belongs to materialization). A parameter that one input lacks counts as 0 there.

    Args:
        deltas: at least one, all for the same base weights.
        weights: one factor per delta, or a mapping from selectors to factors; all 1 if not given.
        dtype: stored dtype of the result.

    Raises:
        InputError: no delta, or weights that are not finite or not as many.
        BaseMismatchError: two inputs disagree about a weight's fingerprint, kind or axis.
        TensorError: a sum is too large for `dtype`.
    """
    factors = [as_weight(weight) for weight in ([1.0] * len(deltas) if weights is None else weights)]
    if len(factors) != len(deltas):
        raise InputError(f"{len(deltas)} deltas need as many weights, {len(factors)} were given")
    return add_all(zip(deltas, factors, strict=True), dtype=dtype)


def add_all(inputs: Iterable[tuple[Delta, Weight]], *, dtype: StoredDtype = "F32") -> Delta:
    """Return Σ wᵢ δᵢ as `add`, of deltas that are opened as they are asked for: it holds one at a time."""
    return total(inputs, lambda weights: _record("add", dtype, weights=[weight.record() for weight in weights]), dtype)


def interpolate(a: Delta, b: Delta, alpha: float, *, dtype: StoredDtype = "F32") -> Delta:
    """Return α δ_a + (1 − α) δ_b (Eq. 5).

    Raises:
        InputError: `alpha` is outside [0, 1].
        BaseMismatchError, TensorError: as `add`.
    """
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be within [0, 1], is {alpha}", fix="use `add` with weights to go beyond")
    alpha = float(alpha)
    pairs = [(a, Weight(alpha)), (b, Weight(1.0 - alpha))]
    return total(pairs, lambda _: _record("interpolate", dtype, alpha=alpha), dtype)


def scale(delta: Delta, factor: float, *, dtype: StoredDtype = "F32") -> Delta:
    """Return factor · δ.

    Raises:
        InputError: `factor` is not finite.
        TensorError: a product is too large for `dtype`.
    """
    weight = Weight(float(factor))
    return total([(delta, weight)], lambda _: _record("scale", dtype, factor=weight.default), dtype)


def _record(operation: str, dtype: StoredDtype, **arguments: JSON) -> Record:
    """Return a record whose arguments name the result's number format where it is not F32."""
    return Record(operation, arguments if dtype == "F32" else {**arguments, "dtype": dtype})


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
        stored[name] = encode(_largest(values, parameter, rank, energy), "F32" if dtype == "I8" else dtype)
    record = Record("truncate", {"rank": rank} if rank is not None else {"energy": energy})
    return Delta.from_stored(stored, combine_metadata([delta], delta.metadata.parameters, record))


def _largest(
    values: NDArray[np.float64], parameter: Parameter, rank: int | None, energy: float | None
) -> NDArray[np.float64]:
    runs = dict(parameter.tied)
    units, index = [], 0
    while index < parameter.size - parameter.null:
        units.append(slice(index, runs.get(index, index) + 1))
        index = units[-1].stop
    units.sort(key=lambda unit: -abs(values[unit.start]))  # stable: of equal ones the first stays first
    result, left, kept = np.zeros_like(values), rank, 0.0
    wanted = 0.0 if energy is None else energy * float(np.square(values).sum())
    for unit in units:
        length = unit.stop - unit.start
        if left is not None and length > left:
            continue
        if left is None and kept >= wanted:
            break
        result[unit] = values[unit]
        left = None if left is None else left - length
        kept += float(np.square(values[unit]).sum())
    return result


WIDER: Final[Mapping[StoredDtype, StoredDtype]] = {"I8": "F16", "F16": "F32", "BF16": "F32"}
"""The format that a parameter gets where the wanted one would lose too much."""


def quantize(delta: Delta, dtype: StoredDtype = "I8", *, max_error: float = 0.02) -> Delta:
    """Return the delta in another number format; a parameter that would lose too much gets the next wider one.

    Args:
        delta: what to convert; F32 converts back.
        dtype: the format to round to.
        max_error: the largest ‖rounded − δ‖ / ‖δ‖ of a parameter.

    Raises:
        InputError: `max_error` is negative or not a number.
        TensorError: a value is too large even for the wider format.
    """
    if not max_error >= 0:
        raise InputError(f"the largest error must be a number from 0, is {max_error}")
    stored = {name: _rounded(name, delta, dtype, max_error) for name in delta}
    record = Record("quantize", {"dtype": dtype, "max_error": float(max_error)})
    return Delta.from_stored(stored, combine_metadata([delta], delta.metadata.parameters, record))


def _rounded(name: str, delta: Delta, dtype: StoredDtype, max_error: float) -> Stored:
    values = delta[name].astype(np.float64)
    if delta.dtype_of(name) == dtype:
        return delta.stored[name]
    if np.abs(values).max(initial=0.0) <= LARGEST[dtype]:
        stored = encode(values, dtype)
        error = np.linalg.norm(stored.decode() - values)
        if dtype not in WIDER or error <= max_error * np.linalg.norm(values):
            return stored
    if dtype not in WIDER:
        check_range(name, values, dtype)
    return _rounded(name, delta, WIDER[dtype], max_error)


def restrict(delta: Delta, names: Sequence[str], record: Record) -> Delta:
    """Return the delta of `names` only, values and dtypes untouched, with `record` in its lineage."""
    kept = sorted(names)
    parameters = {name: delta.metadata.parameters[name] for name in kept}
    for name in kept:
        delta[name]  # reading checks it
    return Delta.from_stored({name: delta.stored[name] for name in kept}, combine_metadata([delta], parameters, record))


def total(
    inputs: Iterable[tuple[Delta, Weight]], record: Callable[[Sequence[Weight]], Record], dtype: StoredDtype
) -> Delta:
    """Return Σ wᵢ δᵢ, holding no more than one input at a time.

    Args:
        inputs: deltas with their weights, opened as they are asked for.
        record: the operation, given the weights.
        dtype: stored dtype of the result.

    Raises:
        InputError, SelectionError, BaseMismatchError, TensorError: as `add`.
    """
    totals, combined, weights = Totals({}), Combined(), []
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing leaves the interpreter to others
        for delta, weight in inputs:
            combined.add(delta, pool.submit(identify, delta))
            totals.add(delta, weight)
            weights.append(weight)
        if not weights:
            raise InputError("there is nothing to add", fix="give at least one delta")
        return totals.result(combined.metadata(totals.parameters, record(weights)), dtype)
