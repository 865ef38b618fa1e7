"""The on-disk cache of bases: one entry per fingerprint, shared by all models that share a weight."""

from __future__ import annotations

import os
import warnings
import zlib
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Final

import numpy as np
import platformdirs
import torch

from ._atomic import replace_file
from .basis import Basis, compute_basis
from .container import header_bytes, read_header
from .errors import CacheError, DeltaError, OutputError

PROTOCOL: Final = "1"
HOME_VARIABLE: Final = "SVDIFF_HOME"


def home() -> Path:
    """Return the folder of all that is kept between runs: `SVDIFF_HOME`, else the platform's cache folder."""
    return Path(os.environ.get(HOME_VARIABLE) or platformdirs.user_cache_dir("svdiff-delta", appauthor=False))


class BasisCache:
    """Bases on disk. Every entry is written atomically and checked when read.

    Args:
        root: the folder; `home() / "basis"` if not given.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root: Final = (root or home() / "basis") / f"v{PROTOCOL}"

    def path(self, key: str) -> Path:
        """Return where the entry for a fingerprint lies."""
        name = urlsafe_b64decode(key + "==").hex()  # hexadecimal: some file systems ignore case
        return self.root / name[:2] / f"{name}.safetensors"

    def get(self, key: str) -> Basis | None:
        """Return the entry for a fingerprint; None if there is none, or a damaged one, which is reported."""
        path = self.path(key)
        try:
            return _decode(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, DeltaError, KeyError, ValueError, RuntimeError) as error:
            warnings.warn(f"{path}: damaged cache entry, computing it again ({error})", stacklevel=2)
            return None

    def put(self, key: str, basis: Basis) -> None:
        """Write an entry.

        Raises:
            OutputError: the folder cannot be made, or the disk refused.
        """
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{path.parent}: could not be made ({error.strerror})", fix=f"set {HOME_VARIABLE}"
            ) from None
        with replace_file(path, overwrite=True) as stream:
            for part in _encode(basis):
                stream.write(part)

    def obtain(self, key: str, rounded: torch.Tensor, axis: int) -> Basis:
        """Return the entry for a fingerprint, computed and kept if it is not there yet."""
        basis = self.get(key)
        if basis is None:
            basis = compute_basis(rounded, axis)
            try:
                self.put(key, basis)
            except OutputError as error:
                warnings.warn(f"going on without the basis cache: {error}", stacklevel=2)
        return basis


def _encode(basis: Basis) -> list[bytes]:
    arrays = {"sigma": basis.sigma.numpy(), "factor": basis.factor.numpy(), "tail": basis.tail.numpy()}
    dtypes = {"sigma": "F64", "factor": "F32", "tail": "F32"}
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
    return [header_bytes([(name, dtypes[name], array.shape) for name, array in arrays.items()], metadata), *body]


def _decode(raw: bytes) -> Basis:
    header = read_header(raw, len(raw))
    if header.metadata.get("svdiff.basis") != PROTOCOL:
        raise CacheError("it follows another protocol")
    if f"{zlib.crc32(memoryview(raw)[header.data :]):08x}" != header.metadata["crc32"]:
        raise CacheError("its checksum does not fit")
    tensors = {}
    for name, numpy_type in (("sigma", "<f8"), ("factor", "<f4"), ("tail", "<f4")):
        entry = header.entries[name]
        count = (entry.stop - entry.start) // np.dtype(numpy_type).itemsize
        array = np.frombuffer(raw, numpy_type, count, header.data + entry.start).reshape(entry.shape)
        tensors[name] = torch.from_numpy(array.copy())
    left = header.metadata["side"] == "left"
    return Basis(tensors["sigma"], tensors["factor"], tensors["tail"], int(header.metadata["null"]), left)
