"""Carry metadata through a conversion: read it from the input, write it to the output (spec, 7.8 to 7.11, 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from svdiff_delta._util.json import JSON
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.entry import Header
from svdiff_delta.format.lineage import Record, Source
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.modelspec import portable_modelspec
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import combine_metadata

from .dialect import Job
from .lazy_tensors import TensorFile

STRUCTURE: Final = ("format", "lora_adapter_metadata", "svdiff")
"""Keys of `__metadata__` that say how a file is built; they mean nothing in another format."""

STRUCTURES: Final = ("ss_network_", "svdiff.")
"""Begin keys that do the same: kohya's, and the documents of this project's files."""

SPEC: Final = "modelspec."


def foreign_facts(headers: Sequence[Header]) -> Metadata:
    """Return what files that another program wrote say of themselves: ModelSpec, and keys that only it understands.

    Args:
        headers: of the files; what the first of them says stands.
    """
    strings = {key: value for header in reversed(headers) for key, value in header.metadata.items()}
    kept = {key: value for key, value in strings.items() if key not in STRUCTURE and not key.startswith(STRUCTURES)}
    spec = {key.removeprefix(SPEC): value for key, value in kept.items() if key.startswith(SPEC)}
    foreign = {key: value for key, value in kept.items() if not key.startswith(SPEC)}
    return Metadata(BaseInfo(), {}, modelspec=portable_modelspec(spec), foreign=foreign)


def copied_facts(
    delta: Delta, parameters: Mapping[str, Parameter], arguments: Mapping[str, JSON], job: Job
) -> Metadata:
    """Return a delta's metadata for a copy in another format, with the conversion in its lineage.

    Args:
        delta: the delta.
        parameters: those that the copy has.
        arguments: of the conversion; the number format is added.
        job: with number format and title.
    """
    given = dict(arguments) if job.dtype == "F32" else {**arguments, "dtype": job.dtype}
    combined = combine_metadata([delta], parameters, Record("convert", given))
    spec = portable_modelspec(combined.modelspec)
    return replace(combined, modelspec=spec if job.title is None else {**spec, "title": job.title})


def name_source(file: TensorFile, said: Metadata) -> tuple[str, Source]:
    """Return the SHA-256 of a safetensors file, and its entry for a lineage.

    Args:
        file: the file.
        said: what it says of itself.
    """
    whole, data = file.digests()
    lineage = said.lineage
    record, extra = (lineage.record, lineage.extra) if lineage else (None, {})
    return whole, Source(data, said.title, said.training, record, extra)
