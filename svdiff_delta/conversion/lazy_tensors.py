"""Open files of tensors, and read one tensor at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from svdiff_delta._util.reading import regular_file
from svdiff_delta.base_model.mapped_tensor import FOREIGN_DTYPES, TORCH_DTYPES
from svdiff_delta.errors import DeltaError, HeaderError, InputError, TensorError
from svdiff_delta.format.container import Header, read_header, read_prefix

Shape = tuple[int, ...]


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
        with regular_file(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            return read_header(read_prefix(stream, size), size, foreign=True)
    except HeaderError as error:
        raise HeaderError(f"{path}: {error.message}", fix=error.fix) from None


class Tensors(Protocol):
    """Tensors by key."""

    @property
    def name(self) -> str:
        """The name of these tensors in errors."""

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
        """The name of this tensor in errors."""
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
            TensorError: it cannot be read, or its number format is packed, without values of its own.
        """
        if (dtype := self.header.entries[key].dtype) not in {*TORCH_DTYPES, *FOREIGN_DTYPES}:
            raise TensorError(
                f"{key}: {self.path} has it as {dtype}, which has no values that can be read one by one",
                fix="use the adapter as it was trained, before it was quantized",
            )
        try:
            found: Tensor = self._opened.get_tensor(key)
        except (safetensors.SafetensorError, KeyError, TypeError, OSError) as error:
            raise TensorError(f"{key}: could not be read from {self.path} ({error})") from None
        return found

    @cached_property
    def _opened(self) -> Any:
        return safetensors.safe_open(self.path, "pt")


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

    @property
    def length(self) -> int:
        """The size of the first dimension, which is the rank for a second factor; 0 for a single number."""
        return self.shape[0] if self.shape else 0

    def __str__(self) -> str:
        return f"{self.key} in {self.tensors.name}"

    def load(self) -> Tensor:
        """Return its values in the number format that they are stored in; those of float8 in float32, which is exact.

        Raises:
            TensorError: it is not floating-point, or holds NaN or infinity.
        """
        value = self.tensors.load(self.key)
        if value.is_floating_point() and value.itemsize == 1:
            value = value.float()  # torch calculates next to nothing in float8
        if not value.is_floating_point():
            raise TensorError(f"{self}: is {str(value.dtype).removeprefix('torch.')}, not floating-point")
        if not torch.isfinite(value).all():
            raise TensorError(f"{self}: holds NaN or infinity", fix="fetch, train or convert it again")
        return value

    def read(self) -> Tensor:
        """Return its values in float64; errors are those of `load`."""
        return self.load().double()

    def number(self) -> float:
        """Return its one value, such as an alpha.

        Raises:
            TensorError: it has several values, or as `read`.
        """
        value = self.tensors.load(self.key).double()
        if value.numel() != 1 or not torch.isfinite(value).all():
            raise TensorError(f"{self}: must be one finite number, has shape {list(self.shape)}")
        return float(value)


class Modules(defaultdict[str, dict[str, Ref]]):
    """Tensors by the path of the module that they are of, and by what they are of it."""

    def __init__(self) -> None:
        super().__init__(dict)

    def take(self, path: str, part: str, ref: Ref) -> None:
        """Take a tensor.

        Raises:
            InputError: another one is the same of that module.
        """
        if part in self[path]:
            raise InputError(f"{ref}: says the same as {self[path][part].key}", fix="keep one of them")
        self[path][part] = ref

    def owner(self, key: str) -> str | None:
        """Return the module that has this key by its beginning; None if none of those that were taken does."""
        path = key
        while path := path.rpartition(".")[0]:
            if path in self:
                return path
        return None
