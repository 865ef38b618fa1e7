"""Delta files: a strict reader and a canonical, atomic writer (spec, sections 3 and 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svdiff_delta._util.atomic import replace_file
from svdiff_delta.errors import DeltaError, InputError, MetadataError, TensorError

from . import metadata as meta
from .container import LARGEST_HEADER, header_bytes, read_header
from .content import IN_MEMORY, Content, InMemory, open_content
from .delta import Delta, Origin, check_range
from .dtypes import (
    STORED_DTYPES,
    Raw,
    Stored,
    StoredDtype,
    blocks,
    encode,
    is_stored_dtype,
    without_negative_zero,
)
from .entry import ITEM_SIZE, Entries, Entry, Header
from .foreign import adapter_in
from .lineage import Source
from .modelspec import with_hash
from .parameter import Parameter

SCALES = "svdiff.scales"
"""The tensor that holds the scales of all I8 tensors, one after the other in sorted-name order."""

DIFFERENCE = "svdiff.difference"
"""The key that says in the metadata of a file that it holds ΔW itself (spec, section 7.9)."""

ADAPTERS = ("adapter_config.json", "pytorch_lora_weights.safetensors")
"""Files that make a folder one of PEFT's or of diffusers'."""

CONVERT = "make a delta of it with `svdiff convert`"


def open_file(path: Path, name: str) -> Delta:
    """Open a delta file; the header is checked at once, each tensor when it is read.

    Args:
        path: the file.
        name: what errors call it.

    Raises:
        InputError, FormatError: as `load`.
    """
    try:
        content = open_content(path, name)
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except (OSError, ValueError) as error:
        if _is_adapter(path):
            raise InputError(f"{name}: is a folder with an adapter (LoRA), not a delta file", fix=CONVERT) from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name}: could not be read ({reason})") from None
    try:
        return _read(content, name)
    except DeltaError as error:
        raise type(error)(f"{name}: {error.message}", fix=error.fix) from None


def loads(buffer: bytes, *, name: str = "") -> Delta:
    """Read a delta from bytes.

    Args:
        buffer: all bytes of the file.
        name: what errors about a tensor call the file, when it is read.

    Raises:
        FormatError: the bytes are not a valid delta file.
    """
    return _read(InMemory(bytes(buffer)), name)


def _read(content: Content, name: str) -> Delta:
    header = read_header(_start(content), content.size)
    _check_kind(header)
    metadata = meta.parse(header.metadata, [name for name in header.entries if name != SCALES])
    plan = _plan(header.entries, metadata.parameters)
    stored = _Stored(content, header.data, plan.places)
    return Delta.from_stored(stored, metadata, Origin(content, header.data, name, plan.flat))


def _start(content: Content) -> bytes | memoryview:
    """Return at least the header; of a file in memory, all of it."""
    if isinstance(content, InMemory):
        return content.part(0, content.size)
    length = int.from_bytes(content.part(0, 8), "little")
    return content.part(0, min(8 + min(length, LARGEST_HEADER), content.size))


def _is_adapter(path: Path) -> bool:
    """Tell whether this is a folder with an adapter of PEFT or diffusers."""
    with suppress(OSError):  # of a name that is too long, and of what may not be looked at
        return any((path / inner).is_file() for inner in ADAPTERS)
    return False


def _check_kind(header: Header) -> None:
    """Raise MetadataError if a file says by its keys that it is a change of weights in another form."""
    if meta.KEY in header.metadata:
        return
    found = adapter_in(header.entries)
    what = "a full difference" if DIFFERENCE in header.metadata else f"an adapter ({found})" if found else ""
    if what:
        raise MetadataError(f"this is {what}, not a delta file", fix=CONVERT)


class _Place(NamedTuple):
    """Where a tensor stands in the data section, and its scales if it is I8."""

    dtype: StoredDtype
    data: slice
    scales: slice


@dataclass(frozen=True)
class _Plan:
    """Where the tensors of a file stand, checked; `flat` if they are all of δ in F32, in sorted-name order."""

    places: Mapping[str, _Place]
    flat: bool


class _Stored(Mapping[str, Stored]):
    """The tensors of a file, each cut out of it when it is asked for."""

    def __init__(self, content: Content, data: int, places: Mapping[str, _Place]) -> None:
        self._content, self._data, self._places = content, data, places

    def __getitem__(self, name: str) -> Stored:
        place = self._places[name]
        return Stored(place.dtype, self._part(place.data), self._part(place.scales) if place.dtype == "I8" else b"")

    def _part(self, place: slice) -> Raw:
        return self._content.part(self._data + place.start, self._data + place.stop)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


_last: tuple[Entries, Mapping[str, Parameter], _Plan] | None = None


def _plan(entries: Entries, parameters: Mapping[str, Parameter]) -> _Plan:
    """Return where the parameters stand; the last answer is kept, since files of one base have the same one.

    Raises:
        TensorError: a tensor has a dtype or a shape that is not its parameter's, or I8 tensors and scales do not fit.
    """
    global _last
    known = _last
    if known is not None and known[0] is entries and known[1] is parameters:
        return known[2]
    plan = _lay_out(entries, parameters)
    _last = entries, parameters, plan
    return plan


def _lay_out(entries: Entries, parameters: Mapping[str, Parameter]) -> _Plan:
    scales = _scales(entries.get(SCALES))
    position = scales.start
    places: dict[str, _Place] = {}
    for name, parameter in parameters.items():
        entry = entries[name]
        if not is_stored_dtype(entry.dtype):
            raise TensorError(f"{name}: stored as {entry.dtype}; a delta file stores {', '.join(STORED_DTYPES)}")
        if entry.shape != (parameter.size,):
            raise TensorError(f"{name}: δ has shape {list(entry.shape)}, its weight needs [{parameter.size}]")
        needed = 2 * blocks(parameter.size) if entry.dtype == "I8" else 0
        if position + needed > scales.stop:
            raise TensorError(f"{name}: is stored as I8, and {SCALES} has no scales left for it")
        places[name] = _Place(entry.dtype, slice(entry.start, entry.stop), slice(position, position + needed))
        position += needed
    if SCALES in entries and position == scales.start:
        raise TensorError(f"{SCALES}: is there, and no tensor is stored as I8")
    if left := scales.stop - position:
        raise TensorError(f"{SCALES}: has {left // 2} scales more than the I8 tensors need")
    flat = list(entries) == list(parameters) and all(place.dtype == "F32" for place in places.values())
    return _Plan(places, flat)


def _scales(entry: Entry | None) -> slice:
    """Return the byte range of the scales in the data section; an empty one if there are none."""
    if entry is None:
        return slice(0, 0)
    if entry.dtype != "F16" or len(entry.shape) != 1:
        raise TensorError(f"{SCALES}: must be F16 with one dimension, is {entry.dtype} {list(entry.shape)}")
    return slice(entry.start, entry.stop)


def dumps(delta: Delta, *, dtype: StoredDtype | None = None) -> bytes:
    """Return the canonical bytes of a delta; the same content gives the same bytes in any process.

    Args:
        delta: what to write.
        dtype: store every tensor in this dtype; None keeps the dtype of each.

    Raises:
        TensorError: a value is too large for the dtype.
        MetadataError: the metadata holds something JSON has no place for.
    """
    stored = {name: _restored(name, delta, dtype) for name in delta}
    tensors = [(name, stored[name].dtype, (parameter.size,)) for name, parameter in delta.metadata.parameters.items()]
    content: dict[str, Raw] = {name: stored[name].data for name in stored}
    if scales := b"".join(stored[name].scales for name in delta):
        tensors.append((SCALES, "F16", (len(scales) // 2,)))
        content[SCALES] = scales
    # Wide items first, so that every tensor is aligned to its item size whatever stands before it.
    tensors.sort(key=lambda tensor: (-ITEM_SIZE[tensor[1]], tensor[0]))
    data = [content[name] for name, _, _ in tensors]
    metadata = replace(delta.metadata, modelspec=with_hash(delta.metadata.modelspec, data))
    return b"".join([header_bytes(tensors, meta.dump(metadata), largest=LARGEST_HEADER), *data])


def _restored(name: str, delta: Delta, dtype: StoredDtype | None) -> Stored:
    """Return δ as it is stored, or rounded to another dtype; checked in either case."""
    values, stored = delta[name], delta.stored[name]
    if dtype is None or dtype == stored.dtype:
        return without_negative_zero(stored)
    wide = values.astype(np.float64)
    check_range(name, wide, dtype)
    return encode(wide, dtype)


def save(delta: Delta, path: str | PathLike[str], *, overwrite: bool = False, dtype: StoredDtype | None = None) -> None:
    """Write a delta file atomically: a crash at any moment leaves the old file or the new one.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or the disk refused.
        TensorError, MetadataError: as `dumps`.
    """
    content = dumps(delta, dtype=dtype)
    with replace_file(Path(path), overwrite=overwrite) as stream:
        stream.write(content)


def file_digest(delta: Delta) -> tuple[str, Source]:
    """Return the SHA-256 of the file a delta came from, or would be, and its entry for a lineage."""
    if delta.origin is not None:
        content, data = delta.origin.content, delta.origin.data
    else:
        written = dumps(delta)
        content, data = InMemory(written), read_header(written, len(written)).data
    lineage = delta.metadata.lineage
    sha256, digest = _hash(content, 0), _hash(content, data)
    source = Source(digest, delta.metadata.title, delta.metadata.training)
    return sha256, source if lineage is None else replace(source, record=lineage.record, extra=lineage.extra)


def _hash(content: Content, start: int) -> str:
    """Return the SHA-256 of all bytes from a place on."""
    found = hashlib.sha256()
    for place in range(start, content.size, IN_MEMORY):
        found.update(content.part(place, min(place + IN_MEMORY, content.size)))
    return found.hexdigest()
