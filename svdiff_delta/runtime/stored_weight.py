"""Read a weight of a base's file later, and raise AttachError if the file has changed since a delta was attached."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import torch
from torch import Tensor

from svdiff_delta._util.file_state import RACY, State, state
from svdiff_delta.base_model.component import read_file_header
from svdiff_delta.base_model.mapped_tensor import map_tensor
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import AttachError, DeltaError
from svdiff_delta.format.entry import Entry
from svdiff_delta.format.stacked import entry_of

SMALL: Final = 1 << 16
"""Bytes of a tensor up to which all of them are hashed."""

ROW: Final = 1 << 10
"""Words in a row of the table whose sums stand for a larger tensor."""

ROWS: Final = 1 << 5
"""Rows that are summed together, both ways: 256 KiB."""


class _Where(NamedTuple):
    """The place of a weight in its file, and the file's state at that time; `seen` is None where that does not tell."""

    data: int
    entry: Entry
    seen: State | None


class StoredWeight:
    """A weight in a base's file.

    As long as the file is as it was, its times and size say so. Where they do not, the values decide; if the file was
    saved again with the same weight elsewhere in it, that is found. What tells the values is computed when they are
    first read: whoever keeps the weight in memory may never ask.

    Args:
        base: an opened base.
        name: the parameter.
        values: its values, as they were just read.
        is_same: tells whether values are the same where the file was changed before they were first read.
    """

    def __init__(self, base: Base, name: str, values: Tensor, is_same: Callable[[Tensor], bool]) -> None:
        self._name, self._is_same = name, is_same
        component, self._key, self._path, entry = base.locate(name)
        header, about = component.opened[self._path]
        self._where = _Where(header.data, entry, _told(state(about)))
        self._digest = digest(values) if self._where.seen is None else None

    def read(self) -> Tensor:
        """Return the values as they stand in the file, on the CPU.

        Raises:
            AttachError: the file cannot be read any more, or the weight in it is another one.
        """
        reason = "was changed since the delta was attached, and holds another weight now"
        try:
            return self._read(self._where)
        except OSError as error:
            reason = f"could not be read any more ({error.strerror})"
        except ValueError:  # the file is shorter, or the values are others
            with suppress(OSError, ValueError, DeltaError):
                return self._read(self._elsewhere())
        raise AttachError(
            f"{self._name}: {self._path} {reason}",
            fix="put the file back as it was; until then the model goes on with its delta",
        )

    def _read(self, where: _Where) -> Tensor:
        """Return the values from a place.

        Raises:
            OSError, ValueError: it cannot be read, or other values stand there.
        """
        seen: list[State] = []
        values = map_tensor(self._path, where.data, where.entry, lambda about: seen.append(state(about)))
        unchanged = not seen or seen[0] == where.seen
        found = digest(values) if not unchanged or self._digest is None else self._digest
        if not unchanged:
            if not (self._is_same(values) if self._digest is None else found == self._digest):
                raise ValueError
            self._where = where._replace(seen=_told(seen[0]))
        self._digest = found
        return values

    def _elsewhere(self) -> _Where:
        """Return where the file's header, read again, says that the weight stands.

        Raises:
            ValueError, DeltaError: it says that nowhere, or there is no such file any more.
        """
        header, _ = read_file_header(self._path)
        entry, before = entry_of(header.entries, self._key), self._where.entry
        if entry is None or (entry.dtype, entry.shape) != (before.dtype, before.shape):
            raise ValueError
        return _Where(header.data, entry, None)


def _told(seen: State) -> State | None:
    """Return what a file is like; None where it may change once more and look the same."""
    return seen if time.time_ns() - max(seen.modified, seen.changed) > RACY else None


def digest(values: Tensor) -> bytes:
    """Return what tells a tensor from others, on whatever device it is.

    A large one is summed by rows and by columns, which goes at the speed of memory: it shows that a file was saved
    again with other weights, or that something was added to a live one; it does not withstand who wants to deceive.
    """
    found = hashlib.blake2b(f"{values.dtype} {list(values.shape)} ".encode(), digest_size=16)
    flat = _bytes(values)
    start = 0 if flat.numel() <= SMALL else flat.numel() // (8 * ROW) * (8 * ROW)
    if start:
        for sums in _sums(flat[:start].view(torch.int64).view(-1, ROW)):
            found.update(sums.cpu().numpy().data)
    found.update(flat[start:].cpu().numpy().data)
    return found.digest()


def _sums(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of columns and of rows, modulo 2⁶⁴; pieces stay in the processor's cache."""
    if table.device.type != "cpu":
        return table.sum(0), table.sum(1)
    pieces = table.split(ROWS)
    return torch.stack([piece.sum(0) for piece in pieces]).sum(0), torch.cat([piece.sum(1) for piece in pieces])


def words(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return all bits of a tensor as int64, and the bytes that are left over; those of other strides are copied."""
    flat = _bytes(values)
    start = flat.numel() // 8 * 8
    return flat[:start].view(torch.int64), flat[start:]


def _bytes(values: Tensor) -> Tensor:
    flat = values.detach().contiguous().flatten().view(torch.uint8)
    return flat.clone() if flat.storage_offset() % 8 else flat  # else torch would not show eight as one number
