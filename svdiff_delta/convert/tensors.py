"""Files of tensors, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from svdiff_delta.container import Header
from svdiff_delta.errors import TensorError
from svdiff_delta.lineage import Lineage, Source

from .difference import file_header
from .hashing import hash_file

Shape = tuple[int, ...]


class Tensors(Protocol):
    """Tensors by key."""

    @property
    def name(self) -> str:
        """What errors call them."""

    def keys(self) -> Iterable[str]:
        """Return the keys, sorted."""

    def shape(self, key: str) -> Shape:
        """Return a tensor's shape, without reading its values."""

    def load(self, key: str) -> Tensor:
        """Return a tensor as it is."""


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header was checked."""

    path: Path
    header: Header

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.path)

    def keys(self) -> list[str]:
        """Return the keys, sorted."""
        return sorted(self.header.entries)

    def shape(self, key: str) -> Shape:
        """Return a tensor's shape, without reading its values."""
        return self.header.entries[key].shape

    def load(self, key: str) -> Tensor:
        """Return a tensor as it is.

        Raises:
            TensorError: it cannot be read.
        """
        try:
            found: Tensor = self._opened.get_tensor(key)
        except (safetensors.SafetensorError, KeyError, TypeError, OSError) as error:
            raise TensorError(f"{key}: could not be read from {self.path} ({error})") from None
        return found

    @cached_property
    def _opened(self) -> Any:
        return safetensors.safe_open(self.path, "pt")

    def source(self, title: str | None = None, lineage: Lineage | None = None) -> tuple[str, Source]:
        """Return the file's SHA-256 and its entry for a lineage."""
        sha256, source = hash_file(self.path)
        source = replace(source, title=title)
        return sha256, source if lineage is None else replace(source, record=lineage.record, extra=lineage.extra)


def open_tensors(path: Path) -> TensorFile:
    """Open a safetensors file.

    Raises:
        InputError: it cannot be read.
        HeaderError: it is broken; the message names the file.
    """
    return TensorFile(path, file_header(path))


@dataclass(frozen=True)
class MemoryTensors:
    """Tensors in memory, such as those that another program's code made of a file's."""

    name: str
    tensors: Mapping[str, Tensor]

    def keys(self) -> list[str]:
        """Return the keys, sorted."""
        return sorted(self.tensors)

    def shape(self, key: str) -> Shape:
        """Return a tensor's shape."""
        return tuple(self.tensors[key].shape)

    def load(self, key: str) -> Tensor:
        """Return a tensor as it is."""
        return self.tensors[key]


@dataclass(frozen=True)
class Ref:
    """One tensor, which is read when it is asked for."""

    tensors: Tensors
    key: str

    @property
    def shape(self) -> Shape:
        """Its shape, without reading it."""
        return self.tensors.shape(self.key)

    def __str__(self) -> str:
        return f"{self.key} in {self.tensors.name}"

    def read(self) -> Tensor:
        """Return its values in float64.

        Raises:
            TensorError: it is not floating-point, or holds NaN or infinity.
        """
        value = self.tensors.load(self.key)
        if not value.is_floating_point():
            raise TensorError(f"{self}: is {str(value.dtype).removeprefix('torch.')}, not floating-point")
        value = value.double()
        if not torch.isfinite(value).all():
            raise TensorError(f"{self}: holds NaN or infinity", fix="fetch or train it again")
        return value

    def number(self) -> float:
        """Return its one value, such as an alpha.

        Raises:
            TensorError: it has several values, or as `read`.
        """
        value = self.tensors.load(self.key).double()
        if value.numel() != 1 or not torch.isfinite(value).all():
            raise TensorError(f"{self}: must be one finite number, has shape {list(self.shape)}")
        return float(value)
