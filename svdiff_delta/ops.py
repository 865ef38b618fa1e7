"""Arithmetic on deltas: pure functions, float64 sums in the order given, one rounding at the end (spec, section 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .codec import Dtype, round_to
from .delta import Delta, check_range, project
from .errors import BaseMismatchError, InputError
from .file import identify
from .lineage import Lineage, Record, Source
from .metadata import BaseInfo, Metadata
from .parameter import Parameter

T = TypeVar("T")


def add(*deltas: Delta, weights: Sequence[float] | None = None, dtype: Dtype = "F32") -> Delta:
    """Return Σ wᵢ δᵢ (Eq. 4; its ReLU belongs to materialization). A parameter that one input lacks counts as 0 there.

    Args:
        deltas: at least one, all for the same base weights.
        weights: one factor per delta; all 1 if not given.
        dtype: stored dtype of the result.

    Raises:
        InputError: no delta, or weights that are not finite or not as many.
        BaseMismatchError: two inputs disagree about a weight's fingerprint, kind or axis.
        TensorError: a sum is too large for `dtype`.
    """
    factors = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
    return _weighted_sum(deltas, factors, dtype, Record("add", {"weights": factors}))


def interpolate(a: Delta, b: Delta, alpha: float, *, dtype: Dtype = "F32") -> Delta:
    """Return α δ_a + (1 − α) δ_b (Eq. 5).

    Raises:
        InputError: `alpha` is outside [0, 1].
        BaseMismatchError, TensorError: as `add`.
    """
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be within [0, 1], is {alpha}", fix="use `add` with weights to go beyond")
    alpha = float(alpha)
    return _weighted_sum((a, b), (alpha, 1.0 - alpha), dtype, Record("interpolate", {"alpha": alpha}))


def scale(delta: Delta, factor: float, *, dtype: Dtype = "F32") -> Delta:
    """Return factor · δ.

    Raises:
        InputError: `factor` is not finite.
        TensorError: a product is too large for `dtype`.
    """
    return _weighted_sum((delta,), (float(factor),), dtype, Record("scale", {"factor": float(factor)}))


def restrict(delta: Delta, names: Sequence[str], record: Record) -> Delta:
    """Return the delta of `names` only, values and dtypes untouched, with `record` in its lineage."""
    kept = sorted(names)
    parameters = {name: delta.metadata.parameters[name] for name in kept}
    metadata = combine_metadata([delta], parameters, record)
    return Delta({name: delta[name] for name in kept}, metadata, dtypes={name: delta.dtype_of(name) for name in kept})


def _weighted_sum(deltas: Sequence[Delta], factors: Sequence[float], dtype: Dtype, record: Record) -> Delta:
    parameters = check_sum(deltas, factors)
    values = {}
    for name, parameter in parameters.items():
        total = weighted_total(name, parameter, deltas, factors)
        check_range(name, total, dtype)
        values[name] = round_to(total, dtype)
    metadata = combine_metadata(deltas, parameters, record)
    return Delta(values, metadata, dtypes=dict.fromkeys(parameters, dtype))


def check_sum(deltas: Sequence[Delta], factors: Sequence[float]) -> dict[str, Parameter]:
    """Return the parameters of Σ wᵢ δᵢ; raise InputError or BaseMismatchError, as `add`, if there is no such sum."""
    if not deltas:
        raise InputError("there is nothing to add", fix="give at least one delta")
    if len(factors) != len(deltas):
        raise InputError(f"{len(deltas)} deltas need as many weights, {len(factors)} were given")
    if not all(map(isfinite, factors)):
        raise InputError("weights must be finite numbers")
    return combine_parameters(deltas)


def weighted_total(
    name: str, parameter: Parameter, deltas: Sequence[Delta], factors: Sequence[float]
) -> NDArray[np.float64]:
    """Return Σ wᵢ δᵢ of one parameter in float64, in the order given, projected on its tied and null runs."""
    total = np.zeros(parameter.size)
    with np.errstate(over="ignore", invalid="ignore"):  # check_range refuses what overflowed, by name
        for delta, factor in zip(deltas, factors, strict=True):
            if name in delta:
                total += factor * delta[name].astype(np.float64)
        return project(parameter, total)


def combine_parameters(deltas: Sequence[Delta]) -> dict[str, Parameter]:
    """Return the union of the inputs' parameters; tied runs and null counts that differ are widened to cover both.

    Raises:
        BaseMismatchError: two inputs disagree about a weight's fingerprint, kind or axis.
    """
    result: dict[str, Parameter] = {}
    for delta in deltas:
        for name, parameter in delta.metadata.parameters.items():
            known = result.setdefault(name, parameter)
            if known != parameter:
                result[name] = _reconcile(name, known, parameter)
    return dict(sorted(result.items()))


def _reconcile(name: str, a: Parameter, b: Parameter) -> Parameter:
    if a.fingerprint != b.fingerprint:
        raise BaseMismatchError(
            f"{name}: the inputs were made for different bases (fingerprints {a.fingerprint} and {b.fingerprint})",
            fix="combine only deltas of one base, or slices that do not overlap",
        )
    for key in ("shape", "kind", "axis"):
        if getattr(a, key) != getattr(b, key):
            raise BaseMismatchError(
                f"{name}: the inputs disagree about its {key} ({getattr(a, key)}, {getattr(b, key)})"
            )
    null = max(a.null, b.null)
    runs = widen_runs([*a.tied, *b.tied])
    # A run that reaches into the null part is null as a whole.
    null = max([null, *(a.size - first for first, last in runs if last >= a.size - null)])
    return replace(a, tied=tuple(run for run in runs if run[1] < a.size - null), null=null)


def widen_runs(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the fewest runs that cover all of these, joining those that share an index."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(runs):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def combine_metadata(deltas: Sequence[Delta], parameters: Mapping[str, Parameter], record: Record) -> Metadata:
    """Return the metadata of a result: what all inputs agree on, with `record` and every input in the lineage."""
    metadatas = [delta.metadata for delta in deltas]
    first = metadatas[0]
    files: dict[str, Source] = {}
    inputs = []
    for delta in deltas:
        sha256, source = identify(delta)
        inputs.append(sha256)
        files |= delta.metadata.lineage.files if delta.metadata.lineage else {}
        files[sha256] = source
    single = len(set(inputs)) == 1
    return Metadata(
        base=_combine_bases([metadata.base for metadata in metadatas]),
        parameters=parameters,
        lineage=Lineage(replace(record, inputs=tuple(inputs)), files),
        training=first.training if single else None,
        modelspec={
            key: value
            for key, value in _common([metadata.modelspec for metadata in metadatas]).items()
            if key != "hash_sha256" and (single or key != "title")
        },
        extra=_first_of([metadata.extra for metadata in metadatas]),
        foreign=_first_of([metadata.foreign for metadata in metadatas]),
    )


def _combine_bases(bases: Sequence[BaseInfo]) -> BaseInfo:
    """Where inputs disagree about names, the first one's stand; fingerprints alone decide whether they fit."""
    first = next((base for base in bases if base.repository is not None), bases[0])
    components = _first_of([base.components for base in bases])
    return replace(first, components=components, extra=_first_of([base.extra for base in bases]))


def _common(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for key, value in mappings[0].items() if all(other.get(key) == value for other in mappings)}


def _first_of(mappings: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """Return the union of all; of a key that stands in several, the first one's value."""
    return {key: value for mapping in reversed(mappings) for key, value in mapping.items()}
