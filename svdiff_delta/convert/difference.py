"""Full differences: a file of ΔW by parameter, computed before it is added to W (spec, section 7.9)."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Final

import numpy as np
import torch
from torch import Tensor

from svdiff_delta import metadata as meta
from svdiff_delta._atomic import replace_file
from svdiff_delta.codec import DTYPES, ITEM_SIZE, LARGEST, Stored, encode, is_dtype
from svdiff_delta.combine import combine_metadata
from svdiff_delta.container import Header, header_bytes, read_header
from svdiff_delta.conversion import Conversion, Energy, check_captured
from svdiff_delta.delta import Delta
from svdiff_delta.errors import BaseMismatchError, DeltaError, HeaderError, InputError, TensorError
from svdiff_delta.lineage import Record, Source
from svdiff_delta.metadata import Metadata
from svdiff_delta.parameter import Parameter
from svdiff_delta.prepare import fit
from svdiff_delta.projection import squared_norm

from .dialect import Changes, Job, Meter

KEY: Final = "svdiff.difference"
"""Key of the document in the container's `__metadata__`; a delta file has `svdiff`."""

FORMAT: Final = "svdiff-difference"


def is_difference(path: Path) -> bool:
    """Tell whether a file says that it is a full difference."""
    header = peek(path)
    return header is not None and KEY in header.metadata


def peek(path: Path) -> Header | None:
    """Return the header of a safetensors file; None if it has none that is valid."""
    try:
        return file_header(path)
    except DeltaError:
        return None


def file_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        InputError: the file cannot be read.
        HeaderError: it is broken; the message names the file.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            prefix = stream.read(8)
            return read_header(prefix + stream.read(min(int.from_bytes(prefix, "little"), size)), size)
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from None
    except HeaderError as error:
        raise HeaderError(f"{path}: {error.message}", fix=error.fix) from None


# --- Reading ---


@dataclass(frozen=True)
class _File:
    """An opened full difference."""

    path: Path
    buffer: mmap.mmap
    header: Header
    metadata: Metadata

    def change(self, name: str) -> Tensor:
        """Return ΔW of one parameter in the weight's own shape, float32.

        Raises:
            TensorError: it holds NaN or infinity.
        """
        entry = self.header.entries[name]
        data = self.buffer[self.header.data + entry.start : self.header.data + entry.stop]
        values = Stored(entry.dtype, data).decode()  # type: ignore[arg-type]  # `_open` checked the dtype
        if not np.isfinite(values).all():
            raise TensorError(f"{name}: ΔW in {self.path} holds NaN or infinity", fix="convert it again")
        return torch.from_numpy(values.reshape(entry.shape))

    def source(self) -> tuple[str, Source]:
        """Return the file's SHA-256 and its entry for a lineage."""
        with memoryview(self.buffer) as view:
            digest = hashlib.sha256(view[self.header.data :]).hexdigest()
            sha256 = hashlib.sha256(view).hexdigest()
        source = Source(digest, self.metadata.title, self.metadata.training)
        lineage = self.metadata.lineage
        return sha256, source if lineage is None else replace(source, record=lineage.record, extra=lineage.extra)


def read_difference(path: Path) -> Changes:
    """Return the changes in a full difference.

    Raises:
        InputError: the file cannot be read.
        FormatError: its bytes are not a valid full difference; the message names the file.
    """
    file = _open(path)
    parameters = file.metadata.parameters
    return Changes(
        kinds={name: (parameter.kind, parameter.axis) for name, parameter in parameters.items()},
        read=file.change,
        sources=lambda: [file.source()],
        expected=parameters,
        metadata=file.metadata,
    )


def _open(path: Path) -> _File:
    try:
        with path.open("rb") as stream:
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: could not be read ({error})") from None
    try:
        header = read_header(memoryview(buffer), len(buffer))
        metadata = meta.parse(header.metadata, list(header.entries), key=KEY, form=FORMAT)
        for name, parameter in metadata.parameters.items():
            entry = header.entries[name]
            if not is_dtype(entry.dtype):
                raise TensorError(f"{name}: stored as {entry.dtype}; a full difference stores {', '.join(DTYPES)}")
            if entry.shape != parameter.shape:
                raise TensorError(f"{name}: ΔW has shape {list(entry.shape)}, its weight {list(parameter.shape)}")
    except DeltaError as error:
        raise type(error)(f"{path}: {error.message}", fix=error.fix) from None
    return _File(path, buffer, header, metadata)


# --- Writing ---


def write_difference(delta: Delta, job: Job) -> Conversion:
    """Write ΔW = U diag(max(δ, −σ)) Vᵀ of every shifted weight, parameter by parameter, as `bake` would add it.

    Parameters with δ = 0 are not written. Without an output all is calculated and nothing is written.

    Raises:
        InputError: δ is 0 throughout, or the number format is none of ΔW.
        BaseMismatchError, BaseError, TensorError: as `bake`.
        OutputError: the output exists, or the disk refused.
    """
    if not is_dtype(job.dtype):
        raise InputError(f"ΔW cannot be stored as {job.dtype}", fix=f"use --dtype {', '.join(DTYPES)}")
    parameters = {name: parameter for name, parameter in delta.metadata.parameters.items() if delta[name].any()}
    if not parameters:
        raise InputError("δ is 0 throughout: there is no change to write", fix="convert a delta that shifts something")
    meter = Meter(job, _elements(delta.metadata.parameters) + _elements(parameters))
    _check(delta, job, meter)
    strings = meta.dump(_metadata(delta, parameters, job), key=KEY, form=FORMAT)
    header = header_bytes([(name, job.dtype, parameter.shape) for name, parameter in parameters.items()], strings)
    layers: dict[str, Energy] = {}
    target: AbstractContextManager[IO[bytes] | None] = nullcontext()
    if job.output is not None:
        target = replace_file(job.output, overwrite=job.overwrite)
    with target as stream:
        if stream is not None:
            stream.write(header)
        for name, raw, energy in _changes(delta, parameters, job, meter):
            if stream is not None:
                stream.write(raw)
            layers[name] = energy
        check_captured(layers.values(), job.min_energy)
    size = len(header) + _elements(parameters) * ITEM_SIZE[job.dtype]
    unchanged = len(delta) - len(parameters)
    return Conversion(delta, layers, unchanged=unchanged, output=job.output, size=size)


def _elements(parameters: Mapping[str, Parameter]) -> int:
    return sum(prod(parameter.shape) for parameter in parameters.values())


def _check(delta: Delta, job: Job, meter: Meter) -> None:
    """Check a delta against the base, and see to it that every basis is in the cache."""
    places: dict[tuple[str, str], str] = {}
    for name in delta:
        component, key, _, _ = job.base.locate(name)
        slot = next(slot for slot, part in job.base.components.items() if part is component)
        if other := places.get((slot, key)):
            raise BaseMismatchError(f"{name}: shifts the same weight as {other}", fix="keep one of the two names")
        places[slot, key] = name
        fit(job.base, name, delta, job.cache)
        meter.add(prod(delta.metadata.parameters[name].shape))


def _metadata(delta: Delta, parameters: Mapping[str, Parameter], job: Job) -> Metadata:
    """What the delta says of itself, without the ModelSpec fields that would call ΔW a delta."""
    arguments = {"to": "full"} if job.dtype == "F32" else {"to": "full", "dtype": job.dtype}
    combined = combine_metadata([delta], parameters, Record("convert", arguments))
    title = combined.title if job.title is None else job.title
    return replace(combined, modelspec={} if title is None else {"title": title})


def _changes(
    delta: Delta, parameters: Mapping[str, Parameter], job: Job, meter: Meter
) -> Iterator[tuple[str, memoryview | bytes, Energy]]:
    """Yield the bytes and the energy of ΔW of each parameter."""
    for name, parameter in parameters.items():
        prepared = fit(job.base, name, delta, job.cache)
        change = prepared.delta_weight(torch.from_numpy(delta[name].astype(np.float64)))
        largest = float(change.abs().max())
        if not largest <= LARGEST[job.dtype]:
            raise TensorError(
                f"{name}: ΔW reaches {largest:g}, {job.dtype} ends at {LARGEST[job.dtype]:g}", fix="use a wider --dtype"
            )
        stored = encode(change.contiguous().flatten().numpy(), job.dtype)
        kept = squared_norm(torch.from_numpy(stored.decode()))
        yield name, stored.data, Energy(squared_norm(change), kept)
        meter.add(prod(parameter.shape))
