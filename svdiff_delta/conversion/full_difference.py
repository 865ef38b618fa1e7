"""Read and write full differences: files of ΔW by parameter, computed before it is added to W (spec, section 7.9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from typing import IO, Final

import numpy as np
import torch

from svdiff_delta._util.atomic import replace_file
from svdiff_delta.errors import DeltaError, InputError, TensorError
from svdiff_delta.format import metadata as meta
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.delta import Delta, check_range
from svdiff_delta.format.dtypes import DTYPES, encode, is_dtype
from svdiff_delta.format.entry import ITEM_SIZE
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import note_weight
from svdiff_delta.svd.energy import Energy
from svdiff_delta.svd.projection import squared_norm
from svdiff_delta.svd.shifted_weight import delta_weight
from svdiff_delta.svd.verify import VerifiedBase, prepare_base

from .dialect import Changes, Job, Meter, WeightChange
from .lazy_tensors import OpenedAdapter, Ref, TensorFile
from .provenance import copied_facts, foreign_facts, name_source
from .result import Conversion, check_retained

KEY: Final = "svdiff.difference"
"""Key of the document in the container's `__metadata__`; a delta file has `svdiff`."""

FORMAT: Final = "svdiff-difference"


def is_difference(source: OpenedAdapter) -> bool:
    """Tell whether a file says that it is a full difference."""
    header = source.header()
    return header is not None and KEY in header.metadata


# --- Reading ---


def read_difference(source: OpenedAdapter) -> Changes:
    """Return the changes in a full difference.

    Raises:
        InputError: the file cannot be read.
        FormatError: its bytes are not a valid full difference; the message names the file.
    """
    file = source.file()
    metadata = _document(file)
    return Changes(
        kinds={name: (parameter.kind, parameter.axis) for name, parameter in metadata.parameters.items()},
        read=lambda name: WeightChange(Ref(file, name).load()),
        sources=lambda: [name_source(file, metadata)],
        expected=metadata.parameters,
        metadata=replace(metadata, foreign=foreign_facts([file.header]).foreign),
    )


def _document(file: TensorFile) -> Metadata:
    """Return the document of a full difference, after checking its tensors against it."""
    entries = file.header.entries
    try:
        metadata = meta.parse(file.header.metadata, list(entries), key=KEY, form=FORMAT)
        for name, parameter in metadata.parameters.items():
            entry = entries[name]
            if not is_dtype(entry.dtype):
                raise TensorError(f"{name}: stored as {entry.dtype}; a full difference stores {', '.join(DTYPES)}")
            if entry.shape != parameter.shape:
                raise TensorError(f"{name}: ΔW has shape {list(entry.shape)}, its weight {list(parameter.shape)}")
    except DeltaError as error:
        raise type(error)(f"{file.path}: {error.message}", fix=error.fix) from None
    return metadata


# --- Writing ---


def write_difference(delta: Delta, job: Job) -> Conversion:
    """Write ΔW = U diag(max(δ, −σ)) Vᵀ of every shifted weight, parameter by parameter, as `bake` would add it.

    Parameters with δ = 0 are not written. Without an output all is calculated and nothing is written.

    Raises:
        InputError: δ is 0 throughout.
        BaseMismatchError, BaseError, TensorError: as `bake`.
        OutputError: the output exists, or the disk refused.
    """
    parameters = {name: parameter for name, parameter in delta.metadata.parameters.items() if delta[name].any()}
    if not parameters:
        raise InputError("δ is 0 throughout: there is no change to write", fix="convert a delta that shifts something")
    _check_names(delta, job)
    verified = prepare_base(job.base, [delta], job.cache, job.progress)
    strings = meta.dump(copied_facts(delta, parameters, {"to": "full"}, job), key=KEY, form=FORMAT)
    header = header_bytes([(name, job.dtype, parameter.shape) for name, parameter in parameters.items()], strings)
    layers: dict[str, Energy] = {}
    target: AbstractContextManager[IO[bytes] | None] = nullcontext()
    if job.output is not None:
        target = replace_file(job.output, overwrite=job.overwrite)
    with target as stream:
        if stream is not None:
            stream.write(header)
        for name, raw, energy in _changes(verified, delta, parameters, job):
            if stream is not None:
                stream.write(raw)
            layers[name] = energy
        check_retained(layers.values(), job.min_energy)
    size = len(header) + _elements(parameters) * ITEM_SIZE[job.dtype]
    unchanged = len(delta) - len(parameters)
    return Conversion(delta, layers, unchanged=unchanged, output=job.output, size=size)


def _elements(parameters: Mapping[str, Parameter]) -> int:
    return sum(prod(parameter.shape) for parameter in parameters.values())


def _check_names(delta: Delta, job: Job) -> None:
    """Raise BaseMismatchError if two names of a delta are those of one weight."""
    places: dict[str, str] = {}
    for name in delta:
        note_weight(places, job.base.stored_name(name), name)


def _changes(
    verified: VerifiedBase, delta: Delta, parameters: Mapping[str, Parameter], job: Job
) -> Iterator[tuple[str, memoryview | bytes, Energy]]:
    """Yield the bytes and the energy of ΔW of each parameter."""
    meter = Meter(job, _elements(parameters))
    for name, parameter in parameters.items():
        prepared = verified.prepare(name, job.cache)
        change = delta_weight(prepared, torch.from_numpy(delta[name].astype(np.float64)))
        values = change.contiguous().flatten().numpy()
        check_range(name, values, job.dtype, what="ΔW ")
        stored = encode(values, job.dtype)
        kept = squared_norm(torch.from_numpy(stored.decode()))
        yield name, stored.data, Energy(squared_norm(change), kept)
        meter.add(prod(parameter.shape))
