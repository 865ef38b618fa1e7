"""Applying a merge method to whole deltas, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta, project
from svdiff_delta.format.dtypes import StoredDtype
from svdiff_delta.format.lineage import Record
from svdiff_delta.format.parameter import Parameter, free_index
from svdiff_delta.ops.combine import combine_metadata, combine_parameters
from svdiff_delta.ops.totals import Totals
from svdiff_delta.ops.weights import Amount, Weight, WeightedDelta, weigh

from .method import Coordinates, Method, Options, uniform
from .methods import METHODS


def merge(
    deltas: Sequence[WeightedDelta],
    *,
    method: str = "linear",
    weights: Sequence[float | Mapping[str, float] | Weight] | None = None,
    density: float | None = None,
    alpha: float | None = None,
    seed: int | None = None,
    dtype: StoredDtype = "F32",
    sample_size: int | None = None,
) -> Delta:
    """Merge deltas of one base; a parameter that one input lacks counts as zeros there.

    Where a method picks coordinates, a tied run is one coordinate and null singular values are none.

    Args:
        deltas: the inputs, in order; one that comes as a pair (delta, weight) has this weight.
        method: a name of `METHODS`.
        weights: one per input, a number or a mapping from selectors to numbers; all 1 if not given. Weights in pairs
            are the same, so they come in one of the two ways.
        density: the share of coordinates that is kept (ties, dare_linear, dare_ties, magnitude).
        alpha: the share of the first of two inputs (slerp).
        seed: of random draws (dare_linear, dare_ties).
        dtype: stored dtype of the result.
        sample_size: the width of the latents that addresses in weights count from; what each file says if not given.

    Raises:
        InputError: an unknown method, an option it does not take or lacks, or weights that do not fit.
        BaseMismatchError: two inputs disagree about a weight's fingerprint, kind or axis.
        SelectionError: a selector of a weight is unknown or matches nothing.
        TensorError: a result is too large for `dtype`.
    """
    if method not in METHODS:
        raise InputError(f"{method!r}: no such merge method", fix=f"known are {', '.join(METHODS)}")
    chosen = METHODS[method]
    options = _options(method, chosen, Options(density=density, alpha=alpha, seed=seed))
    pairs = _inputs(method, chosen, deltas, weights)
    inputs = [delta for delta, _ in pairs]
    parameters = combine_parameters(inputs)
    by_name = [weight.by_name(delta.metadata, sample_size) for delta, weight in pairs]
    totals = Totals(parameters)
    for name, parameter in parameters.items():
        own = [factor.get(name, 0.0) for factor in by_name]
        totals[name] = _merge_one(name, parameter, inputs, own, chosen, options)
    arguments = {"method": method, **{key: value for key, value in asdict(options).items() if value is not None}}
    if dtype != "F32":
        arguments["dtype"] = dtype
    if sample_size is not None:
        arguments["sample_size"] = sample_size
    if chosen.weighted:
        arguments["weights"] = [weight.record() for _, weight in pairs]
    return totals.result(combine_metadata(inputs, parameters, Record("merge", arguments)), dtype)


def _options(name: str, method: Method, given: Options) -> Options:
    """Fill in defaults; refuse what the method does not use, and what it lacks."""
    values = asdict(given)
    for key, value in values.items():
        if value is not None and key not in method.options:
            raise InputError(f"{name} takes no {key}", fix=f"it takes {', '.join(method.options) or 'weights only'}")
        if key in method.options and value is None:
            values[key] = method.options[key]
            if values[key] is None:
                raise InputError(f"{name} needs {key}", fix=f"give {key}, such as 0.5")
    return Options(**values)


def _inputs(
    name: str, method: Method, deltas: Sequence[WeightedDelta], weights: Sequence[Amount] | None
) -> list[tuple[Delta, Weight]]:
    if not deltas:
        raise InputError("there is nothing to merge", fix="give at least one delta")
    if method.inputs is not None and len(deltas) != method.inputs:
        raise InputError(f"{name} takes {method.inputs} deltas, {len(deltas)} were given")
    if not method.weighted and (weights is not None or any(isinstance(item, tuple) for item in deltas)):
        raise InputError(f"{name} takes no weights", fix="use alpha")
    return weigh(deltas, weights)


def _merge_one(
    name: str,
    parameter: Parameter,
    deltas: Sequence[Delta],
    weights: Sequence[float],
    method: Method,
    options: Options,
) -> Coordinates:
    """Return the merged δ (size,) of one parameter."""
    wide = [
        project(parameter, delta[name].astype(np.float64)) if name in delta else np.zeros(parameter.size)
        for delta in deltas
    ]
    index = None if method.whole else free_index(parameter)
    values = wide if index is None else [_gather(value, index) for value in wide]

    def draw(number: int) -> Coordinates:
        return uniform(options.seed or 0, name, number, values[0].size)

    with np.errstate(over="ignore", invalid="ignore"):  # what overflowed is refused, by name, where it is rounded
        merged = method.merge(values, weights, options, draw)
    return merged if index is None else np.concatenate([merged, [0.0]])[index]


def _gather(value: Coordinates, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Coordinates:
    """Return one number per free coordinate; null entries, whose index is −1, fall out."""
    free = np.zeros(int(index.max(initial=-1)) + 1)
    kept = index >= 0
    free[index[kept]] = value[kept]
    return free
