"""Write and read one entry of the cache of decompositions as a file (spec, section 10)."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import time
import zlib
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch

from svdiff_delta._util.file_state import State, state
from svdiff_delta.errors import CacheError
from svdiff_delta.format.container import header_bytes, read_header
from svdiff_delta.format.entry import Header

from .decomposition import Basis

PROTOCOL: Final = "1"
SUFFIX: Final = ".safetensors"
DIGEST: Final = "digest"
"""The member of the metadata that binds all others, and every dtype, shape and place, to each other."""

_DTYPES: Final = {"sigma": ("F64", "<f8"), "factor": ("F32", "<f4"), "tail": ("F32", "<f4")}


class BusyError(Exception):
    """Another process or thread computes this basis now, and the cache was told not to wait."""


class OlderEntry(CacheError):  # noqa: N818 - what it is, not what went wrong
    """An entry is whole, and by an earlier version, which did not bind it to its weight."""


def hexadecimal(key: str) -> str:
    """Return a fingerprint as it stands in an entry and in its name: some file systems ignore case."""
    return urlsafe_b64decode(key + "==").hex()


def encode_entry(basis: Basis, key: str) -> list[bytes]:
    """Return the bytes of an entry, in pieces.

    Args:
        basis: what it keeps.
        key: the fingerprint of the weight whose basis it is.
    """
    arrays = {name: getattr(basis, name).numpy() for name in _DTYPES}
    body = [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays.values()]
    checksum = 0
    for part in body:
        checksum = zlib.crc32(part, checksum)
    metadata = {
        "svdiff.basis": PROTOCOL,
        "crc32": f"{checksum:08x}",
        "fingerprint": hexadecimal(key),
        "null": str(basis.null),
        "side": "left" if basis.left else "right",
    }
    layout = [(name, _DTYPES[name][0], array.shape) for name, array in arrays.items()]
    return [header_bytes(layout, metadata | {DIGEST: _digest(layout, metadata)}), *body]


def _digest(layout: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the header that an entry has without its digest, in hexadecimal."""
    return hashlib.sha256(header_bytes(layout, {k: v for k, v in metadata.items() if k != DIGEST})).hexdigest()


_SUMMED: Final[set[State]] = set()
"""The states of the entries whose bytes this process has summed."""

HOUR: Final = 3600 * 1_000_000_000  # nanoseconds


def read_entry(path: Path, key: str, *, once: bool = True) -> Basis:
    """Read and check an entry; its tensors are pages of the file, which other processes share.

    Args:
        path: the entry.
        key: the fingerprint of the weight whose basis is wanted.
        once: whether a checksum that this process found right need not be computed again while the file is the same.

    Raises:
        OSError: there is no such file, or it cannot be read.
        CacheError, HeaderError: it is damaged, belongs to another weight, or follows another protocol; as `OlderEntry`
            if an earlier version wrote it.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            raise CacheError("it is empty")
        # Private pages may be written to, as torch wants them; nothing ever does.
        raw = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        found = state(os.fstat(stream.fileno()))
    header = read_header(memoryview(raw), len(raw))
    _check_header(header, key, raw[: header.data])
    if found not in _SUMMED or not once:
        if f"{zlib.crc32(memoryview(raw)[header.data :]):08x}" != header.metadata["crc32"]:
            raise CacheError("its checksum does not fit")
        _SUMMED.add(found)
    tensors = {}
    for name, (dtype, numpy_type) in _DTYPES.items():
        entry = header.entries.get(name)
        if entry is None or entry.dtype != dtype or len(entry.shape) > 2:
            raise CacheError(f"it has no {name} in {dtype}")
        count = (entry.stop - entry.start) // np.dtype(numpy_type).itemsize
        array = np.frombuffer(raw, numpy_type, count, header.data + entry.start)
        tensors[name] = torch.from_numpy(array.reshape(entry.shape))
    return _checked(tensors, header.metadata)


def touch_entry(path: Path) -> None:
    """Note that an entry is used now, for `prune`: to the hour, so that processes seldom see each other's notes.

    Raises:
        OSError: the system refuses.
    """
    before = state(path.stat())
    if time.time_ns() - before.modified < HOUR:
        return
    os.utime(path)
    if before in _SUMMED:
        _SUMMED.add(state(path.stat()))


def _check_header(header: Header, key: str, written: bytes) -> None:
    """Check that an entry follows this protocol, is of the weight that is asked for, and that no field was changed.

    That costs a hash of some 500 bytes, whatever the size of the entry.
    """
    metadata = header.metadata
    if metadata.get("svdiff.basis") != PROTOCOL:
        raise CacheError("it follows another protocol")
    if DIGEST not in metadata:
        raise OlderEntry("an earlier version made it, without its fingerprint")
    if not _fits(header, written) or "crc32" not in metadata:
        raise CacheError("its digest does not fit: its header was changed")
    found, wanted = metadata.get("fingerprint"), hexadecimal(key)
    if found != wanted:
        raise CacheError(f"it is the basis of another weight (fingerprint {found}, not {wanted})")


def _fits(header: Header, written: bytes) -> bool:
    """Tell whether the digest in a header is the one of the header without it."""
    digest = header.metadata[DIGEST]
    text = written[8:].rstrip(b" ").replace(f'"{DIGEST}":"{digest}",'.encode(), b"", 1)
    text += b" " * (-len(text) % 8)
    if hashlib.sha256(struct.pack("<Q", len(text)) + text).hexdigest() == digest:
        return True  # in canonical form, as it was written
    layout = [(name, entry.dtype, entry.shape) for name, entry in header.entries.items()]
    return _digest(layout, header.metadata) == digest


def _checked(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Basis:
    """Return the basis if the tensors fit each other."""
    sigma, factor, tail = (tensors[name] for name in _DTYPES)
    null, side = metadata.get("null", ""), metadata.get("side")
    count = sigma.numel()
    fits = (
        null.isascii()
        and null.isdigit()
        and side in ("left", "right")
        and sigma.ndim == 1
        and factor.shape == (count, count)
        and tail.ndim == 2
        and tail.shape[0] + int(null) <= count
    )
    if not fits:
        raise CacheError("its tensors do not fit each other")
    return Basis(sigma, factor, tail, int(null), side == "left")
