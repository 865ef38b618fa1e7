"""Read a weight of a base's file later, and raise AttachError if the file has changed since a delta was attached."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from svdiff_delta._util.file_state import RACY, State, state
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.component import read_file_header
from svdiff_delta.base_model.mapped_tensor import map_tensor
from svdiff_delta.errors import AttachError, DeltaError
from svdiff_delta.format.container import Entry

SMALL: Final = 1 << 16
"""Bytes of a tensor up to which all of them are hashed."""

ROW: Final = 1 << 10
"""Words in a row of the table whose sums stand for a larger tensor."""


class _Where(NamedTuple):
    """The place of a weight in its file, and the file's state at that time; `seen` is None where that does not tell."""

    data: int
    entry: Entry
    seen: State | None


class StoredWeight:
    """A weight in a base's file.

    As long as the file is as it was, its times and size say so. Where they do not, the values decide; if the file was
    saved again with the same weight elsewhere in it, that is found.

    Args:
        base: an opened base.
        name: the parameter.
        values: its values, as they were just read.
    """

    def __init__(self, base: Base, name: str, values: Tensor) -> None:
        self._name = name
        component, self._key, self._path, entry = base.locate(name)
        header, about = component.opened[self._path]
        self._digest = digest(values)
        self._where = _Where(header.data, entry, _told(state(about)))

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
        if seen and seen[0] != where.seen:
            if digest(values) != self._digest:
                raise ValueError
            self._where = where._replace(seen=_told(seen[0]))
        return values

    def _elsewhere(self) -> _Where:
        """Return where the file's header, read again, says that the weight stands.

        Raises:
            ValueError, DeltaError: it says that nowhere, or there is no such file any more.
        """
        header, _ = read_file_header(self._path)
        entry, before = header.entries.get(self._key), self._where.entry
        if entry is None or (entry.dtype, entry.shape) != (before.dtype, before.shape):
            raise ValueError
        return _Where(header.data, entry, None)


def _told(seen: State) -> State | None:
    """Return what a file is like; None where it may change once more and look the same."""
    return seen if time.time_ns() - max(seen.modified, seen.changed) > RACY else None


def digest(values: Tensor) -> bytes:
    """Return what tells a tensor from others.

    A large one is summed by rows and by columns, which goes at the speed of memory: it shows that a file was saved
    again with other weights; it does not withstand who wants to deceive.
    """
    found = hashlib.blake2b(f"{values.dtype} {list(values.shape)} ".encode(), digest_size=16)
    flat = values.contiguous().flatten().view(torch.uint8).numpy()
    start = 0 if flat.size <= SMALL else flat.size // (8 * ROW) * (8 * ROW)
    if start:
        table = flat[:start].view(np.int64).reshape(-1, ROW)
        for axis in (0, 1):
            found.update(table.sum(axis).data)
    found.update(flat[start:].data)
    return found.digest()
