"""Convert between deltas and other dialects, through δ of a base (spec, section 7.8)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta._util.reading import system_errors
from svdiff_delta.base_model.devices import on_host
from svdiff_delta.base_model.matching import named_like
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import StoredDtype
from svdiff_delta.format.file import save
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.io import load
from svdiff_delta.svd.build import prepare_all
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.calibration import Calibration, Factors, Moments, Probe, bytes_of, calibrate_change, factors_of
from svdiff_delta.svd.energy import Energy, OutputEnergy, total_output
from svdiff_delta.svd.prepare import Prepared, Progress, prepare_weight
from svdiff_delta.svd.projection import check_same_weights, project_change, project_shift

from .dialect import Changes, Job, Meter, ShiftReader, WeightChange
from .lazy_tensors import OpenedAdapter
from .rank_policy import make_ranking
from .registry import DELTA
from .result import DECIMALS, Conversion, check_captured, check_left_out, recorded_share
from .result_metadata import conversion_metadata
from .route import ConversionRoute, resolve_route

ADAPTERS: Final = ("peft", "diffusers", "kohya", "lycoris", "flux")
"""Dialects of adapters, whose readers take their updates by `Adapter`."""


@on_host
def convert(
    input: str | PathLike[str] | Delta,  # noqa: A002 - what it is
    *,
    to: str = DELTA,
    base: Base,
    from_: str | None = None,
    output: str | PathLike[str] | None = None,
    dtype: StoredDtype = "F32",
    min_energy: float | None = None,
    allow_unmatched: bool = False,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    embeddings: bool = False,
    title: str | None = None,
    overwrite: bool = False,
    calibration: Calibration | None = None,
    made_on: Base | None = None,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    component: str | None = None,
) -> Conversion:
    """Convert a delta to another dialect, or full weights, an adapter or shifts in another dialect to a delta.

    To a delta, δᵢ = uᵢᵀ ΔW vᵢ on the base's singular vectors, clipped at −σ. A shift can only stretch what the base
    has: of a random change it captures about 1/max(M, N) for a weight of M rows and N columns. From a delta to `full`,
    ΔW is what `bake` would add to the base; to a low-rank dialect it is the part of that with the largest |Δσ|, the
    best copy of its rank. Everything is checked before anything is written.

    Args:
        input: a delta, or the path of a delta file, of a file in another dialect, or of a tuned checkpoint.
        to: "delta", or a name of `DIALECTS`.
        base: the base that both belong to.
        from_: "delta", or a name of `DIALECTS`; found from the input if not given.
        output: where to write, atomically; without it all is calculated and nothing is written.
        dtype: number format of what is written.
        min_energy: the least share of the whole change, in [0, 1], that must be captured; that of the dialect if not
            given: 0 for full weights and low-rank copies, more for what is made of an adapter.
        allow_unmatched: whether what cannot be carried over may be left out; it is listed in the result.
        rank: the rank of a low-rank copy.
        energy: or the share of each weight's change, in (0, 1], that it must retain.
        max_rank: the most ranks for that.
        embeddings: whether changed embeddings may be shifted too.
        title: a title for the result; that of the input if not given.
        overwrite: whether an existing output may be replaced.
        calibration: measures what the layers' inputs are, so that δ comes nearest to what the change does to them, not
            to the change itself.
        made_on: the base that an adapter was made on, for methods whose files lack what their library takes out of that
            base anew; by how much a rounded copy of it would move the change is remarked.
        cache: where bases are kept; the default cache if not given.
        progress: called with how much is done and how much there is in all, of each stage.
        component: the component of the base that an adapter's keys mean which name none, such as a second expert; the
            denoiser, or the only model, if not given.

    Raises:
        InputError: an unknown dialect, a least energy out of range or not reached, weights that cannot be carried
            over, nothing that changes, no rank where one is needed, or an output that is the input.
        BaseMismatchError: the input was made for another base, or nothing in it fits this one.
        BaseError: the base or the tuned checkpoint cannot be used.
        FormatError: the input is broken.
        OutputError: the output exists, or the disk refused.
    """
    ranking = make_ranking(rank, energy, max_rank)
    route = resolve_route(input, to=to, from_=from_, dtype=dtype, min_energy=min_energy, ranking=ranking, base=base)
    if calibration is not None and route.read is None:
        raise InputError("a delta is shifts already: there is nothing to calibrate", fix="leave the calibration away")
    if made_on is not None and route.source not in ADAPTERS:
        raise InputError(f"{route.source}: holds all that its change is made of", fix="leave `made_on` away")
    job = Job(
        base=base,
        cache=cache or BasisCache(),
        dtype=dtype,
        output=None if output is None else Path(output),
        title=title,
        overwrite=overwrite,
        min_energy=route.min_energy,
        allow_unmatched=allow_unmatched,
        ranking=ranking,
        embeddings=embeddings,
        progress=progress,
        calibration=calibration,
        component=component,
        made_on=made_on,
    )
    job.check(input)
    if route.read is None:
        delta = input if isinstance(input, Delta) else load(input)
        return _written(route, delta, job)
    if route.write is not None:
        projected = _project(route, replace(job, dtype="F32"))  # what is between is not rounded as the result is
        written = _written(route, projected.delta, replace(job, min_energy=min_energy or 0.0))
        return replace(
            projected,
            left_out={**projected.left_out, **written.left_out},
            output=written.output,
            size=written.size,
            ranks=written.ranks,
            remarks=projected.remarks + written.remarks,
            retained=written.layers,
        )
    projected = _project(route, job)
    if job.output is not None:
        save(projected.delta, job.output, overwrite=overwrite)
    return replace(projected, output=job.output)


def _written(route: ConversionRoute, delta: Delta, job: Job) -> Conversion:
    write = cast("Callable[[Delta, Job], Conversion]", route.write)
    return write(delta, replace(job, base=named_like(job.base, delta)))


def _project(route: ConversionRoute, job: Job) -> Conversion:
    """Return the delta that is nearest to what an input changes, and the energy that it captures."""
    read, opened = cast("Callable[[OpenedAdapter, Job], Changes]", route.read), cast("OpenedAdapter", route.opened)
    path = opened.name
    with system_errors(path, InputError):
        changes = read(opened, job)
    check_left_out(changes.left_out, path, allow_unmatched=job.allow_unmatched, hint=changes.hint)
    job = replace(job, base=named_like(job.base, changes.kinds))
    check_same_weights(job.base, changes.expected, path)
    dtypes = {name: changes.basis_dtype(name) for name in changes.kinds}
    prepare_all(job.base, changes.kinds, job.cache, dtypes=dtypes, progress=job.progress)
    values, parameters, layers, outputs = _projections(changes, job)
    if not values:
        raise InputError(f"{path}: nothing that can be shifted changes", fix="convert what differs from the base")
    check_captured(layers.values(), job.min_energy)
    arguments = {"from": route.source, "captured": recorded_share(layers.values())}
    if changes.left_out:
        arguments["left_out"] = len(changes.left_out)
    if job.calibration is not None:
        captured = round(total_output(outputs.values()).shares[1], DECIMALS)
        arguments["calibration"] = {**job.calibration.facts, "captured": captured, "layers": len(outputs)}
    metadata = conversion_metadata(changes, parameters, arguments, job)
    delta = Delta(values, metadata, dtypes=dict.fromkeys(values, job.dtype))
    unchanged = changes.unchanged + len(changes.kinds) - len(values)
    remarks = changes.remarks + (job.calibration.remarks if job.calibration else ())
    return Conversion(delta, layers, left_out=changes.left_out, unchanged=unchanged, outputs=outputs, remarks=remarks)


def _projections(
    changes: Changes, job: Job
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Parameter], dict[str, Energy], dict[str, OutputEnergy]]:
    """Return δ, parameter, energy and output energy of each weight that changes, one weight at a time."""
    values, parameters, layers, outputs = {}, {}, {}, {}
    moments = job.calibration.collect(_probes(changes, job)) if job.calibration else {}
    sizes = {name: prod(job.base.shape(name)) for name in changes.kinds}
    meter = Meter(job, sum(sizes.values()))
    for name in changes.kinds:
        prepared = _prepared(name, changes, job)
        match changes.read(name):
            case ShiftReader(read):
                shift, energy = project_shift(prepared, *read(prepared))
            case WeightChange(change) if name in moments:
                shift, energy, outputs[name] = _calibrated(name, prepared, change, moments[name])
            case WeightChange(change):
                shift, energy = project_change(prepared, change, name=name)
        if energy.whole:
            values[name], parameters[name], layers[name] = shift, prepared.parameter, energy
        meter.add(sizes[name])
    return values, parameters, layers, outputs


def _prepared(name: str, changes: Changes, job: Job) -> Prepared:
    return prepare_weight(job.base, name, *changes.kinds[name], job.cache, dtype=changes.basis_dtype(name))


def _probes(changes: Changes, job: Job) -> dict[str, Probe]:
    """Return what is to be measured of each layer with a matrix that changes."""

    def make(name: str) -> Factors:
        match changes.read(name):
            case WeightChange(change):
                return factors_of(_prepared(name, changes, job), change)
            case ShiftReader():
                why = "the input holds shifts: there is nothing to calibrate"
                raise InputError(why, fix="leave the calibration away")

    return {
        name: Probe(bytes_of(job.base.shape(name), axis), functools.partial(make, name))
        for name, (kind, axis) in changes.kinds.items()
        if kind == "spectral"
    }


def _calibrated(
    name: str, prepared: Prepared, change: Tensor, moments: Moments
) -> tuple[NDArray[np.float64], Energy, OutputEnergy]:
    try:
        return calibrate_change(prepared, change, moments)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", fix=error.fix) from None
