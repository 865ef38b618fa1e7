"""Tensors as bytes: rows are taken out, put together and swapped, and no number is ever read but an alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.conversion.lazy_tensors import Shape, TensorFile
from svdiff_delta.errors import TensorError

NUMBERS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
"""Formats of single numbers, as NumPy calls them; BF16 it does not know."""


@dataclass(frozen=True)
class Raw:
    """A tensor as it stands in a file.

    Attributes:
        dtype: its number format, as safetensors calls it.
        shape: its shape.
        data: its bytes.
    """

    dtype: str
    shape: Shape
    data: bytes

    def table(self) -> NDArray[np.uint8]:
        """Return its bytes, one line for each row."""
        return np.frombuffer(self.data, np.uint8).reshape(self.shape[0], -1)

    def rows(self, start: int, stop: int) -> Raw:
        """Return some of its rows."""
        return Raw(self.dtype, (stop - start, *self.shape[1:]), self.table()[start:stop].tobytes())

    def swapped(self) -> Raw:
        """Return it with its two halves of rows in the other order."""
        half = self.shape[0] // 2
        return Raw(self.dtype, self.shape, self.rows(half, self.shape[0]).data + self.rows(0, half).data)

    def columns(self, start: int, stop: int) -> Raw:
        """Return some of its columns: of B (rows, r, 1, …), which has one number for each of them."""
        size = self._size
        return Raw(
            self.dtype,
            (self.shape[0], stop - start, *self.shape[2:]),
            np.ascontiguousarray(self.table()[:, start * size : stop * size]).tobytes(),
        )

    def is_zero(self, start: int, stop: int) -> bool:
        """Tell whether all bytes of some columns are 0."""
        return not self.table()[:, start * self._size : stop * self._size].any()

    @property
    def _size(self) -> int:
        return len(self.data) // max(1, self.shape[0] * self.shape[1])

    def number(self) -> float:
        """Return its one value.

        Raises:
            TensorError: it has several, or is no finite number.
        """
        value = float("nan")
        if prod(self.shape) == 1 and self.dtype == "BF16":
            value = float((np.frombuffer(self.data, "<u2").astype("<u4") << 16).view("<f4")[0])
        elif prod(self.shape) == 1 and self.dtype in NUMBERS:
            value = float(np.frombuffer(self.data, NUMBERS[self.dtype])[0])
        if not isfinite(value):
            raise TensorError(f"an alpha must be one finite number, and is {self.dtype} of shape {list(self.shape)}")
        return value


def take(file: TensorFile, key: str) -> Raw:
    """Return a tensor of a file."""
    entry = file.header.entries[key]
    start = file.header.data + entry.start
    return Raw(entry.dtype, entry.shape, bytes(file.pages[start : start + entry.stop - entry.start]))


def alpha_of(value: float, dtype: str = "F32", shape: Shape = ()) -> Raw:
    """Return an alpha as a tensor: in a format that holds it exactly, the given one if that does; else in F32."""
    for name in (dtype, "F32"):
        found = _encoded(value, name, shape)
        if found is not None and found.number() == value:
            return found
    return Raw("F32", shape, np.array(value, "<f4").tobytes())


def _encoded(value: float, dtype: str, shape: Shape) -> Raw | None:
    if prod(shape) != 1:
        return None
    if dtype == "BF16":
        return Raw(dtype, shape, np.array(value, "<f4").tobytes()[2:])
    if dtype not in NUMBERS or (dtype.startswith("I") and value != int(value)):
        return None
    with np.errstate(over="ignore"):
        data = np.array(value, NUMBERS[dtype]).tobytes()
    return Raw(dtype, shape, data) if np.isfinite(np.frombuffer(data, NUMBERS[dtype])).all() else None


def stacked(parts: Sequence[Raw]) -> Raw:
    """Return tensors one below the other.

    Raises:
        TensorError: they differ in number format, or in the rest of their shapes.
    """
    first = parts[0]
    if any((part.dtype, part.shape[1:]) != (first.dtype, first.shape[1:]) for part in parts):
        kinds = " and ".join(sorted({f"{part.dtype} {list(part.shape)}" for part in parts}))
        raise TensorError(f"{kinds} cannot stand in one tensor", fix="give all layers of a block one number format")
    shape = sum(part.shape[0] for part in parts), *first.shape[1:]
    return Raw(first.dtype, shape, b"".join(part.data for part in parts))


def diagonal(parts: Sequence[Raw]) -> Raw:
    """Return factors B (rows, r, 1, …) as blocks of a diagonal, with 0 elsewhere; one of rank 0 is rows of zeros.

    Raises:
        TensorError: they differ in number format.
    """
    there = [part for part in parts if part.shape[1]]
    if len(kinds := sorted({part.dtype for part in there})) > 1:
        raise TensorError(f"{' and '.join(kinds)} cannot stand in one tensor", fix="give all layers one number format")
    size = len(there[0].data) // (there[0].shape[0] * there[0].shape[1])
    whole = np.zeros((sum(part.shape[0] for part in parts), sum(part.shape[1] for part in parts) * size), np.uint8)
    row = column = 0
    for part in parts:
        width = part.shape[1] * size
        if width:
            whole[row : row + part.shape[0], column : column + width] = part.table()
        row, column = row + part.shape[0], column + width
    return Raw(there[0].dtype, (row, column // size, *there[0].shape[2:]), whole.tobytes())
