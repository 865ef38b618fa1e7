"""The record in a file of the operations and inputs that made it (spec, section 8)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from svdiff_delta._util.json import JSON, as_object, canonical_json
from svdiff_delta.errors import MetadataError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Record:
    """One operation: its name, its arguments, and the SHA-256 (hex) of each input file in order."""

    operation: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """An input of an operation.

    Attributes:
        digest: SHA-256 (hex) of its tensor bytes.
        title: its title, if it has one.
        training: its training facts, if it has any.
        record: the operation that made it, if one did.
        extra: unknown fields, kept as they are.
    """

    digest: str
    title: str | None = None
    training: Mapping[str, JSON] | None = None
    record: Record | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a file was made: the last operation, and every file it goes back to, each once, by SHA-256.

    Unknown fields are kept in `extra` as they are.
    """

    record: Record
    files: Mapping[str, Source] = field(default_factory=dict)
    extra: Mapping[str, JSON] = field(default_factory=dict)


LIMIT: Final = 65_536
"""Bytes of a lineage in canonical form beyond which its files are cut short."""


def bounded(lineage: Lineage) -> Lineage:
    """Return a lineage that tells of direct inputs only, or of no file, if it would be larger than 64 kB otherwise.

    What is left out is counted, and there is a digest of it. The SHA-256 of the inputs stay, however many there are.
    """
    files = {sha256: _dump_source(source) for sha256, source in lineage.files.items()}
    if len(canonical_json(dump_lineage(lineage))) <= LIMIT:
        return lineage
    digest = hashlib.sha256(canonical_json(files)).hexdigest()
    extra = {**lineage.extra, "omitted": {"count": len(files), "digest": digest}}
    direct = {
        sha256: Source(lineage.files[sha256].digest, lineage.files[sha256].title)
        for sha256 in dict.fromkeys(lineage.record.inputs)
        if sha256 in lineage.files
    }
    short = Lineage(lineage.record, direct, extra)
    return short if len(canonical_json(dump_lineage(short))) <= LIMIT else replace(short, files={})


def _dump_record(record: Record) -> dict[str, JSON]:
    """Return the JSON fields of an operation."""
    return {"operation": record.operation, "arguments": dict(record.arguments), "inputs": list(record.inputs)}


def dump_lineage(lineage: Lineage) -> dict[str, JSON]:
    """Return the JSON fields of a lineage."""
    files = {sha256: _dump_source(source) for sha256, source in lineage.files.items()}
    return {**lineage.extra, **_dump_record(lineage.record), "files": files}


def _dump_source(source: Source) -> dict[str, JSON]:
    fields: dict[str, JSON] = {**source.extra, "digest": source.digest}
    if source.title is not None:
        fields["title"] = source.title
    if source.training is not None:
        fields["training"] = dict(source.training)
    if source.record is not None:
        fields |= _dump_record(source.record)
    return fields


def parse_lineage(fields: dict[str, JSON]) -> Lineage:
    """Check and read the JSON fields of a lineage; raise MetadataError naming the field that is wrong."""
    files = as_object(fields.pop("files", {}), "lineage.files")
    record = _parse_record(fields, "lineage")
    if record is None:
        raise MetadataError("lineage.operation: is missing")
    return Lineage(record, {sha256: _parse_source(sha256, source) for sha256, source in files.items()}, fields)


def _parse_source(sha256: str, fields: JSON) -> Source:
    where = f"lineage.files.{sha256[:64]}"
    fields = as_object(fields, where)
    digest, titled = fields.pop("digest", None), "title" in fields
    title = fields.pop("title", None)
    if not _DIGEST.fullmatch(sha256) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise MetadataError(f"{where}: SHA-256 digests have 64 hexadecimal digits")
    if titled and not isinstance(title, str):
        raise MetadataError(f"{where}.title: must be a string")
    training = as_object(fields.pop("training"), f"{where}.training") if "training" in fields else None
    record = _parse_record(fields, where)
    return Source(digest, title, training, record, fields)


def _parse_record(fields: dict[str, JSON], where: str) -> Record | None:
    if "operation" not in fields:
        return None
    operation, inputs = fields.pop("operation"), fields.pop("inputs", [])
    if not isinstance(operation, str) or not operation:
        raise MetadataError(f"{where}.operation: must be a non-empty string")
    if not isinstance(inputs, list) or not all(isinstance(item, str) and _DIGEST.fullmatch(item) for item in inputs):
        raise MetadataError(f"{where}.inputs: must be SHA-256 digests with 64 hexadecimal digits")
    return Record(operation, as_object(fields.pop("arguments", {}), f"{where}.arguments"), tuple(inputs))
