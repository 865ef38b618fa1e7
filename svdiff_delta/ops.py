"""Arithmetic on deltas: pure functions, float64 sums in the order given, one rounding at the end (spec, section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from .codec import StoredDtype
from .combine import Combined, combine_metadata
from .delta import Delta
from .errors import InputError
from .file import identify
from .lineage import Record
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
    return total(zip(deltas, factors, strict=True), add_record, dtype)


def add_record(weights: Sequence[Weight]) -> Record:
    """Return the record of an `add`."""
    return Record("add", {"weights": [weight.record() for weight in weights]})


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
    return total(pairs, lambda _: Record("interpolate", {"alpha": alpha}), dtype)


def scale(delta: Delta, factor: float, *, dtype: StoredDtype = "F32") -> Delta:
    """Return factor · δ.

    Raises:
        InputError: `factor` is not finite.
        TensorError: a product is too large for `dtype`.
    """
    weight = Weight(float(factor))
    return total([(delta, weight)], lambda _: Record("scale", {"factor": weight.default}), dtype)


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
