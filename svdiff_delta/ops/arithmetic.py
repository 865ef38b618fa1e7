"""Arithmetic on deltas: pure functions, float64 sums in the order given, one rounding at the end (spec, section 7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from svdiff_delta._util.json import JSON
from svdiff_delta._util.parallel import Task, Threads
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import StoredDtype
from svdiff_delta.format.file import file_digest
from svdiff_delta.format.lineage import Record, Source
from svdiff_delta.selectors.match import match

from .combine import Combined, combine_metadata, combine_parameters
from .totals import Totals
from .weights import Weight, WeightedDelta, as_factor, weigh

PENDING: Final = 4
"""Inputs that may wait to be hashed while others are summed: what is held stays bounded however many there are."""


GEOMETRY: Final = "(16,down,1)-(8,down,0)"
"""The layers of SD 1.5 that give geometry in the paper's style mixing (section 4.4)."""


def add(
    *deltas: WeightedDelta,
    weights: Sequence[float | Mapping[str, float] | Weight] | None = None,
    dtype: StoredDtype = "F32",
    sample_size: int | None = None,
) -> Delta:
    """Return Σ wᵢ δᵢ (Eq. 4; its ReLU belongs to materialization). A parameter that one input lacks counts as 0 there.

    Args:
        deltas: at least one, all for the same base weights; one that comes as a pair (delta, weight) has this weight.
        weights: one factor per delta, or a mapping from selectors to factors; all 1 if not given. Weights in pairs are
            the same, so they come in one of the two ways.
        dtype: stored dtype of the result.
        sample_size: the width of the latents that addresses in weights count from; what each file says if not given.

    Raises:
        InputError: no delta, or weights that are not finite, not as many, or given in both ways.
        BaseMismatchError: two inputs disagree about a weight's fingerprint, kind or axis.
        TensorError: a sum is too large for `dtype`.
    """
    return add_all(weigh(deltas, weights), dtype=dtype, sample_size=sample_size)


def add_all(
    inputs: Iterable[tuple[Delta, Weight]], *, dtype: StoredDtype = "F32", sample_size: int | None = None
) -> Delta:
    """Return Σ wᵢ δᵢ as `add`, of deltas that are opened as they are asked for: it holds a few at a time."""

    def record(weights: Sequence[Weight]) -> Record:
        given = {} if sample_size is None else {"sample_size": sample_size}
        return _record("add", dtype, weights=[weight.record() for weight in weights], **given)

    return total(inputs, record, dtype, sample_size)


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
    weight = Weight(as_factor(factor, "the factor"))
    return total([(delta, weight)], lambda _: _record("scale", dtype, factor=weight.default), dtype)


def style_mix(
    geometry: Delta,
    appearance: Delta,
    *,
    layers: str | Sequence[str] = GEOMETRY,
    sample_size: int | None = None,
    dtype: StoredDtype = "F32",
) -> Delta:
    """Return `geometry` in some layers and `appearance` in all others (section 4.4, Fig. 10).

    It is `add` with weights 1 and 0 in these layers, 0 and 1 elsewhere, and stands in the lineage as that. An
    appearance that shifts none of the layers counts as a whole.

    Args:
        geometry: gives the layers; it must shift some of them.
        appearance: gives the rest.
        layers: selectors, such as ranges of addresses; the paper's, which are those of SD 1.5, if not given.
        sample_size: the width of the latents that addresses count from; what each file says if not given.
        dtype: stored dtype of the result.

    Raises:
        InputError: there is no selector, or `sample_size` is less than 1.
        SelectionError: a selector is unknown, or names nothing in the geometry.
        BaseMismatchError, TensorError: as `add`.
    """
    selectors = [layers] if isinstance(layers, str) else list(layers)
    if not selectors:
        raise InputError("no layer gives geometry", fix=f"name some, such as {GEOMETRY}")
    there = [selector for selector in selectors if _names_some(selector, geometry, appearance, sample_size)]
    shape = Weight(0.0, dict.fromkeys(selectors, 1.0))
    look = Weight(1.0, dict.fromkeys(there, 0.0))
    return add(geometry, appearance, weights=[shape, look], dtype=dtype, sample_size=sample_size)


def _names_some(selector: str, told: Delta, delta: Delta, sample_size: int | None) -> bool:
    """Tell whether a selector names parameters of a delta, as another one tells where the base has what."""
    base, known = told.metadata.base, combine_parameters([told, delta])
    size = base.sample_size if sample_size is None else sample_size
    shapes = {name: parameter.shape for name, parameter in known.items()}
    return not delta.keys().isdisjoint(match(shapes, [selector], sample_size=size, layout=base.attentions))


def _record(operation: str, dtype: StoredDtype, **arguments: JSON) -> Record:
    """Return a record whose arguments name the result's number format where it is not F32."""
    return Record(operation, arguments if dtype == "F32" else {**arguments, "dtype": dtype})


def restrict(delta: Delta, names: Sequence[str], record: Record) -> Delta:
    """Return the delta of `names` only, values and dtypes untouched, with `record` in its lineage."""
    kept = sorted(names)
    parameters = {name: delta.metadata.parameters[name] for name in kept}
    for name in kept:
        delta[name]  # reading checks it
    return Delta.from_stored({name: delta.stored[name] for name in kept}, combine_metadata([delta], parameters, record))


def total(
    inputs: Iterable[tuple[Delta, Weight]],
    record: Callable[[Sequence[Weight]], Record],
    dtype: StoredDtype,
    sample_size: int | None = None,
) -> Delta:
    """Return Σ wᵢ δᵢ, holding no more than a few inputs at a time.

    Args:
        inputs: deltas with their weights, opened as they are asked for.
        record: the operation, given the weights.
        dtype: stored dtype of the result.
        sample_size: what addresses in weights count from.

    Raises:
        InputError, SelectionError, BaseMismatchError, TensorError: as `add`.
    """
    totals, combined, weights = Totals({}), Combined(), []
    pending: deque[Task[tuple[str, Source]]] = deque()
    with Threads[tuple[str, Source]](2) as pool:  # hashing leaves the interpreter to others
        for delta, weight in inputs:
            pending.append(pool.submit(partial(file_digest, delta)))
            combined.add(delta, pending[-1].result)
            totals.add(delta, weight, sample_size)
            weights.append(weight)
            if len(pending) > PENDING:
                pending.popleft().result()
        if not weights:
            raise InputError("there is nothing to add", fix="give at least one delta")
        return totals.result(combined.metadata(totals.parameters, record(weights)), dtype)
