"""Look at a file of δ once: its SHA-256, whether it is a valid file, and what table of parameters it is for.

Files of one base have the same entries and the same table in their headers, byte for byte. Where both were met before,
a file of that kind is read at the speed of its hash; what else its metadata says is checked when it is opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Final

import numpy as np

from svdiff_delta._util.file_state import State, state
from svdiff_delta._util.reading import system_errors
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import loads

LARGEST: Final = 1 << 30
"""Bytes of a file of δ; the largest models' have some tens of megabytes."""

FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

KINDS: Final = 8
"""Kinds of files that are kept in mind."""

_TABLE: Final = rb"\"parameters\":{"
"""How the table begins in a canonical header: JSON within a string of JSON."""

_ENTRIES: Final = b'"},"'
"""What stands before the first tensor's name; within strings of the metadata a quotation mark has a backslash."""


@dataclass(frozen=True)
class Looked:
    """What one look at a file found.

    Attributes:
        digest: the SHA-256 of its bytes.
        table: the SHA-256 of its table of parameters, which says what base and what layers it is for; empty if it is no
            valid file.
        fault: why it cannot be used; empty if it can.
        seen: the state that it was read in.
    """

    digest: str
    table: str
    fault: str
    seen: State


class Looker:
    """Looks at files one after the other, and knows kinds again; several threads may share it."""

    def __init__(self) -> None:
        self._kinds: list[_Kind] = []

    def look(self, path: str) -> Looked:
        """Read a file once.

        Raises:
            InputError: it cannot be read at all.
        """
        with system_errors(path, InputError):
            # Not as a stream, whose buffers take as long as the hash of a small file; and so a pipe does not wait.
            descriptor = os.open(path, FLAGS)
            try:
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise InputError(f"{path}: could not be read (is no file)")
                if about.st_size > LARGEST:
                    raise InputError(f"{path}: has more than {LARGEST:,} bytes")
                raw = _read(descriptor, about.st_size)
            finally:
                os.close(descriptor)
        seen = state(about)
        digest = hashlib.sha256(raw).hexdigest()
        for kind in self._kinds:
            if kind.holds(raw):
                return Looked(digest, kind.table, "", seen)
        try:
            delta = loads(raw)
            check_values(delta)
        except DeltaError as error:
            return Looked(digest, "", error.message, seen)
        new = _Kind.of(raw, delta)
        if new is not None:
            self._kinds = [new, *self._kinds[: KINDS - 1]]  # a new list: other threads may walk the former one
        return Looked(digest, table_digest(delta), "", seen)


@dataclass(frozen=True)
class _Kind:
    """Files that differ in nothing but their values and what they say of themselves.

    Attributes:
        entries: the header from the first tensor's name on.
        parameters: the table as it stands in the header.
        data: bytes of the data section, all of it float32.
        table: the table's digest.
    """

    entries: bytes
    parameters: bytes
    data: int
    table: str

    @staticmethod
    def of(raw: bytes, delta: Delta) -> _Kind | None:
        """Return the kind of a valid file; None where its values could not be told to be valid at once."""
        length = 8 + int.from_bytes(raw[:8], "little")
        runs = any(item.tied or item.null for item in delta.metadata.parameters.values())
        start = raw.find(_ENTRIES, 0, length)
        first = raw.find(_TABLE, 0, start)
        if runs or start < 0 or first < 0 or delta.flat() is None:
            return None
        table = raw[first : _closing(raw, first + len(_TABLE), start)]
        return _Kind(raw[start:length].rstrip(), table, len(raw) - length, table_digest(delta))

    def holds(self, raw: bytes) -> bool:
        """Tell whether a file is of this kind, and its values are finite."""
        length = 8 + int.from_bytes(raw[:8], "little")
        if len(raw) - length != self.data:
            return False
        start = raw.find(_ENTRIES, 0, length)
        first = raw.find(_TABLE, 0, start)
        if min(start, first) < 0 or not raw.startswith(self.parameters, first):
            return False
        if not raw.startswith(self.entries, start) or raw[start + len(self.entries) : length].strip():
            return False
        return bool(np.isfinite(np.frombuffer(raw, "<f4", offset=length)).all())


def _read(descriptor: int, size: int) -> bytes:
    """Return what is in a file; a file that is being written may be longer or shorter than it was."""
    raw = os.read(descriptor, size + 1)
    while len(raw) < size and (more := os.read(descriptor, size + 1 - len(raw))):  # 2 GiB is the most at a time
        raw += more
    return raw


def _closing(raw: bytes, start: int, stop: int) -> int:
    """Return where the object ends in which a place lies: behind its closing brace. Names have no braces in them."""
    depth = 1
    for place in range(start, stop):
        depth += {0x7B: 1, 0x7D: -1}.get(raw[place], 0)
        if not depth:
            return place + 1
    return stop


def check_values(delta: Delta) -> None:
    """Read all values of a delta, which checks them.

    Raises:
        TensorError: one is not finite, or not projected.
    """
    for name in delta:
        delta[name]


def table_digest(delta: Delta) -> str:
    """Return the SHA-256 of what a delta says about its parameters."""
    total = hashlib.sha256()
    for name, item in delta.metadata.parameters.items():
        total.update(repr((name, item.shape, item.kind, item.axis, item.dtype, item.fingerprint)).encode())
        total.update(repr((item.tied, item.null)).encode())
    return total.hexdigest()
