"""Delta files: a strict reader and a canonical, atomic writer (spec, sections 3 and 4)."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

from . import metadata as meta
from ._atomic import replace_file
from .codec import DTYPES, ITEM_SIZE, Dtype, decode, encode
from .container import Entry, header_bytes, read_header
from .delta import Delta, Origin, Shift, check_range
from .errors import DeltaError, InputError, TensorError
from .lineage import Source


class _Tensors(Mapping[str, Shift]):
    """δ decoded from the file at each access, so that a delta costs no memory until it is read."""

    def __init__(self, origin: Origin, entries: Mapping[str, Entry]) -> None:
        self._origin, self._entries = origin, entries

    def __getitem__(self, name: str) -> Shift:
        entry, data = self._entries[name], self._origin.data
        return decode(self._origin.buffer[data + entry.start : data + entry.stop], _dtype(name, entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def load(path: str | PathLike[str]) -> Delta:
    """Open a delta file; the header is checked at once, each tensor when it is read.

    Raises:
        InputError: there is no such file, or it cannot be read.
        FormatError: its bytes are not a valid delta file; the message names the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            empty = stream.seek(0, 2) == 0
            buffer = b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: could not be read ({reason})") from None
    try:
        return loads(buffer, name=str(path))
    except DeltaError as error:
        raise type(error)(f"{path}: {error.message}", fix=error.fix) from None


def loads(buffer: bytes | mmap.mmap, *, name: str = "") -> Delta:
    """Read a delta from bytes.

    Args:
        buffer: all bytes of the file.
        name: what errors about a tensor call the file, when it is read.

    Raises:
        FormatError: the bytes are not a valid delta file.
    """
    header = read_header(memoryview(buffer), len(buffer))
    metadata = meta.parse(header.metadata, list(header.entries))
    for key, parameter in metadata.parameters.items():
        entry = header.entries[key]
        if entry.shape != (parameter.size,):
            raise TensorError(f"{key}: δ has shape {list(entry.shape)}, its weight needs [{parameter.size}]")
    origin = Origin(buffer, header.data, name)
    dtypes = {key: _dtype(key, entry) for key, entry in header.entries.items()}
    return Delta(_Tensors(origin, header.entries), metadata, dtypes=dtypes, origin=origin)


def dumps(delta: Delta, *, dtype: Dtype | None = None) -> bytes:
    """Return the canonical bytes of a delta; the same content gives the same bytes in any process.

    Args:
        delta: what to write.
        dtype: store every tensor in this dtype; None keeps the dtype of each.

    Raises:
        TensorError: a value is too large for the dtype.
        MetadataError: the metadata holds something JSON has no place for.
    """
    dtypes = {name: dtype or delta.dtype_of(name) for name in delta}
    # Wide items first, so that every tensor is aligned to its item size whatever stands before it.
    names = sorted(delta, key=lambda name: (-ITEM_SIZE[dtypes[name]], name))
    tensors = [(name, dtypes[name], delta[name].shape) for name in names]
    for name in names:
        check_range(name, delta[name].astype("f8"), dtypes[name])
    body = [encode(delta[name], dtypes[name]) for name in names]
    return b"".join([header_bytes(tensors, meta.dump(delta.metadata)), *body])


def save(delta: Delta, path: str | PathLike[str], *, overwrite: bool = False, dtype: Dtype | None = None) -> None:
    """Write a delta file atomically: a crash at any moment leaves the old file or the new one.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or the disk refused.
        TensorError, MetadataError: as `dumps`.
    """
    content = dumps(delta, dtype=dtype)
    with replace_file(Path(path), overwrite=overwrite) as stream:
        stream.write(content)


def identify(delta: Delta) -> tuple[str, Source]:
    """Return the SHA-256 of the file a delta came from, or would be, and its entry for a lineage."""
    if delta.origin is not None:
        buffer, data = delta.origin.buffer, delta.origin.data
    else:
        buffer = dumps(delta)
        data = read_header(buffer, len(buffer)).data
    lineage = delta.metadata.lineage
    with memoryview(buffer) as view:
        digest = hashlib.sha256(view[data:]).hexdigest()
        sha256 = hashlib.sha256(view).hexdigest()
    source = Source(digest, delta.metadata.title, delta.metadata.training)
    return sha256, source if lineage is None else replace(source, record=lineage.record, extra=lineage.extra)


def _dtype(name: str, entry: Entry) -> Dtype:
    for dtype in DTYPES:
        if dtype == entry.dtype:
            return dtype
    raise TensorError(f"{name}: stored as {entry.dtype}; a delta file stores {', '.join(DTYPES)}")
