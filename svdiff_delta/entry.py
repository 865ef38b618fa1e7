"""One entry of the basis cache as a file (spec, section 10)."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch

from .basis import Basis
from .container import header_bytes, read_header
from .errors import CacheError

PROTOCOL: Final = "1"
SUFFIX: Final = ".safetensors"
_DTYPES: Final = {"sigma": ("F64", "<f8"), "factor": ("F32", "<f4"), "tail": ("F32", "<f4")}


def encode_entry(basis: Basis) -> list[bytes]:
    """Return the bytes of an entry, in pieces."""
    arrays = {name: getattr(basis, name).numpy() for name in _DTYPES}
    body = [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays.values()]
    checksum = 0
    for part in body:
        checksum = zlib.crc32(part, checksum)
    metadata = {
        "svdiff.basis": PROTOCOL,
        "crc32": f"{checksum:08x}",
        "null": str(basis.null),
        "side": "left" if basis.left else "right",
    }
    return [header_bytes([(name, _DTYPES[name][0], array.shape) for name, array in arrays.items()], metadata), *body]


_SUMMED: Final[set[tuple[int, int, int, str]]] = set()
"""Device, inode, size and checksum of the entries whose bytes this process has summed."""


def read_entry(path: Path, *, once: bool = True) -> Basis:
    """Read and check an entry; its tensors are pages of the file, which other processes share.

    Args:
        path: the entry.
        once: whether a checksum that this process found right need not be computed again.

    Raises:
        OSError: there is no such file, or it cannot be read.
        CacheError, HeaderError: it is damaged, or follows another protocol.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            raise CacheError("it is empty")
        # Private pages may be written to, as torch wants them; nothing ever does.
        raw = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        about = os.fstat(stream.fileno())
    header = read_header(memoryview(raw), len(raw))
    metadata = header.metadata
    if metadata.get("svdiff.basis") != PROTOCOL:
        raise CacheError("it follows another protocol")
    identity = about.st_dev, about.st_ino, about.st_size, metadata.get("crc32", "")
    if identity not in _SUMMED or not once:
        if f"{zlib.crc32(memoryview(raw)[header.data :]):08x}" != metadata.get("crc32"):
            raise CacheError("its checksum does not fit")
        _SUMMED.add(identity)
    tensors = {}
    for name, (dtype, numpy_type) in _DTYPES.items():
        entry = header.entries.get(name)
        if entry is None or entry.dtype != dtype:
            raise CacheError(f"it has no {name} in {dtype}")
        count = (entry.stop - entry.start) // np.dtype(numpy_type).itemsize
        array = np.frombuffer(raw, numpy_type, count, header.data + entry.start)
        tensors[name] = torch.from_numpy(array.reshape(entry.shape))
    return _checked(tensors, metadata)


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
