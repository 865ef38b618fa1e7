"""Keep what frozen models gave on disk: one file for each content that went in, up to a number of bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.home import home
from svdiff_delta._util.warned import warn_once
from svdiff_delta.errors import InputError, OutputError

PROTOCOL: Final = "1"
SUFFIX: Final = ".safetensors"
KEY: Final = "svdiff.outputs"
DIGEST: Final = "digest"

GB: Final = 10**9
SIZE: Final = 20.0
"""Gigabytes that are kept where nothing else is said."""


class OutputCache:
    """Outputs on disk by the content of what they were made of. Entries are written atomically, and checked when read.

    Processes may share the folder. What is over the bound goes, that first which was not used for longest; what this
    object has given or taken stays.

    Args:
        root: the folder; `home() / "outputs"` if not given.
        output_cache_size: its bound, in gigabytes.

    Raises:
        InputError: the size is not above 0.
    """

    def __init__(self, root: Path | None = None, *, output_cache_size: float = SIZE) -> None:
        if not output_cache_size > 0:
            raise InputError(f"output_cache_size must be above 0 GB, is {output_cache_size}")
        self.root: Final = (root or home() / "outputs") / f"v{PROTOCOL}"
        self.limit: Final = int(output_cache_size * GB)
        self._used: dict[Path, int] = {}

    def path(self, key: str) -> Path:
        """Return where the entry of a key, a digest in hexadecimal, lies."""
        return self.root / key[:2] / f"{key}{SUFFIX}"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the entry of a key; None if there is none that can be used, and a damaged one is reported."""
        path = self.path(key)
        try:
            found = _read(path, key)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            warn_once(f"{path}: damaged entry of the cache of outputs, computing it again ({error})", path)
            return None
        with suppress(OSError):
            os.utime(path)
        self._used[path] = sum(tensor.nbytes for tensor in found.values())
        return found

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry, and remove what is over the bound.

        Raises:
            OutputError: the disk refused, or this object's own entries do not fit into the bound.
        """
        path, kept = self.path(key), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._used[path] = sum(tensor.nbytes for tensor in kept.values())
        if (own := sum(self._used.values())) > self.limit:
            raise OutputError(
                f"{self.root}: what this run keeps of its encoders takes more than {self.limit / GB:g} GB",
                fix=f"let it have twice as much, with `output_cache_size={2 * own / GB:.3g}`",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = to_bytes(kept, metadata={KEY: PROTOCOL, "key": key, DIGEST: _digest(kept)})
        with replace_file(path, overwrite=True) as stream:
            stream.write(raw)
        self._trim()

    def _trim(self) -> None:
        """Remove the entries that were not used for longest, until the others are within the bound."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit:
                return
            if path not in self._used:
                path.unlink(missing_ok=True)
                total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each entry was last used, its bytes and its path."""
        for path in self.root.glob(f"*/*{SUFFIX}"):
            with suppress(OSError):  # another process has removed it
                about = path.stat()
                yield about.st_mtime, about.st_size, path


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """Return the tensors of an entry.

    Raises:
        OSError, SafetensorError, ValueError: it cannot be read, is of another key, or was changed.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    if about.get(KEY) != PROTOCOL or about.get("key") != key or about.get(DIGEST) != _digest(found):
        raise ValueError("it does not hold what it says")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, dtypes, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add_bytes(total, tensor)
    return total.hexdigest()


PIECE: Final = 1 << 26
"""Bytes that are brought to the CPU at a time."""


def add_bytes(total: hashlib._Hash, tensor: Tensor) -> None:
    """Let a digest take in the bytes of a tensor, wherever it is."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
    for piece in flat.split(PIECE):
        total.update(piece.cpu().numpy().data if piece.numel() else b"")
