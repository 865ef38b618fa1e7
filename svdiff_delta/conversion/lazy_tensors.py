"""Open files of tensors, and read one tensor at a time."""

from __future__ import annotations

import hashlib
import mmap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from svdiff_delta._util.reading import regular_file
from svdiff_delta.base_model.mapped_tensor import FOREIGN_DTYPES, TORCH_DTYPES
from svdiff_delta.errors import DeltaError, HeaderError, InputError, TensorError
from svdiff_delta.format.container import read_foreign_header
from svdiff_delta.format.entry import Header

Shape = tuple[int, ...]

BLOCK: Final = 1 << 20
"""Bytes of a file that are hashed at a time."""


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


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A safetensors file that was opened once: its checked header, and its bytes as pages of the file.

    Whatever stands at its path later, its header, its tensors and its digest are those of one and the same file.
    """

    path: Path
    header: Header
    pages: mmap.mmap

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

    def load(self, key: str, at: tuple[slice, ...] | None = None) -> Tensor:
        """Return a tensor as it is, in memory of its own.

        Args:
            key: the tensor's.
            at: which part of it, by its first axes; all of it if not given. Only that is read.

        Raises:
            TensorError: its number format is packed, without values of its own.
        """
        entry = self.header.entries[key]
        dtype = TORCH_DTYPES.get(entry.dtype) or FOREIGN_DTYPES.get(entry.dtype)
        if dtype is None:
            raise TensorError(
                f"{key}: {self.path} has it as {entry.dtype}, which has no values that can be read one by one",
                fix="use the adapter as it was trained, before it was quantized",
            )
        start = self.header.data + entry.start
        raw = np.frombuffer(self.pages, np.uint8, entry.stop - entry.start, start)
        if at is None:
            return torch.from_numpy(raw.copy()).view(dtype).reshape(entry.shape)
        part = raw.reshape(*entry.shape, dtype.itemsize)[at].copy()
        return torch.from_numpy(part).view(dtype).squeeze(-1)

    def digests(self) -> tuple[str, str]:
        """Return the SHA-256 of the whole file and of its data section, in hexadecimal."""
        whole, data = hashlib.sha256(self.pages[: self.header.data]), hashlib.sha256()
        for start in range(self.header.data, len(self.pages), BLOCK):
            block = self.pages[start : start + BLOCK]
            whole.update(block)
            data.update(block)
        return whole.hexdigest(), data.hexdigest()


def open_tensors(path: Path) -> TensorFile:
    """Open a safetensors file.

    Raises:
        InputError: it cannot be read.
        HeaderError: it is broken; the message names the file.
    """
    try:
        with regular_file(path) as stream:
            header, _ = read_foreign_header(stream)
            return TensorFile(path, header, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except HeaderError as error:
        raise HeaderError(f"{path}: {error.message}", fix=error.fix) from None


def peek(path: Path) -> Header | None:
    """Return the header of a safetensors file; None if it has none that is valid."""
    return OpenedAdapter(path).header()


class OpenedAdapter:
    """The input of a conversion, a file or a folder, in which each file is opened once, whoever looks at it.

    Args:
        source: its path.
    """

    def __init__(self, source: str | PathLike[str]) -> None:
        self.name, self.path = fspath(source), Path(source)
        self._files: dict[Path, TensorFile | DeltaError] = {}

    def file(self, path: Path | None = None) -> TensorFile:
        """Return a safetensors file of it: itself, or one in its folder.

        Raises:
            InputError: it cannot be read.
            HeaderError: it is broken; the message names the file.
        """
        path = self.path if path is None else path
        if path not in self._files:
            try:
                self._files[path] = open_tensors(path)
            except DeltaError as error:
                self._files[path] = error
        opened = self._files[path]
        if isinstance(opened, DeltaError):
            raise opened
        return opened

    def header(self, path: Path | None = None) -> Header | None:
        """Return the header of a safetensors file of it; None if that has none that is valid."""
        try:
            return self.file(path).header
        except DeltaError:
            return None


@dataclass(frozen=True)
class TensorPart:
    """The same part of each tensor of a file that has as many axes or more."""

    file: TensorFile
    at: tuple[slice, ...]

    @property
    def name(self) -> str:
        """The name of the file in errors."""
        return self.file.name

    def keys(self) -> list[str]:
        """Return the keys, sorted."""
        return self.file.keys()

    def shape(self, key: str) -> Shape:
        """Return the shape of a tensor's part, without reading its values."""
        whole = self.file.shape(key)
        parts = (len(range(*part.indices(size))) for part, size in zip(self.at, whole, strict=False))
        return (*parts, *whole[len(self.at) :])

    def load(self, key: str) -> Tensor:
        """Return a tensor's part as it is."""
        return self.file.load(key, self.at)


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
