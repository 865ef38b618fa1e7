"""The bytes of a file that is read again later: in memory, or on disk while the file is the one that was opened."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from svdiff_delta._util.file_state import State, state
from svdiff_delta.errors import InputError

IN_MEMORY: Final = 64 << 20
"""Bytes up to which a delta file is held in memory.

One number for each singular value: Stable Diffusion 1.5 has 1 MB of them in F32, SDXL 2 MB, Flux 6 MB, a language model
of 405 billion weights 57 MB. What is larger holds much besides, such as embeddings.
"""


class Content(Protocol):
    """All bytes of a file, which never change: whoever asks twice gets the same."""

    @property
    def size(self) -> int:
        """How many there are."""

    def part(self, start: int, stop: int) -> bytes | memoryview:
        """Return a part of them, read-only."""


@dataclass(frozen=True)
class InMemory:
    """Bytes that nobody else can write to."""

    whole: bytes

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.whole)

    def part(self, start: int, stop: int) -> memoryview:
        """Return a part of them."""
        return memoryview(self.whole)[start:stop]


@dataclass(frozen=True)
class OnDisk:
    """The bytes of a large file. No descriptor is held: each part is read when it is asked for, from the same file.

    Pages of the file would change with it, and end the process where it becomes shorter.

    Attributes:
        path: the file.
        name: what errors call it.
        seen: what it was like when it was opened.
    """

    path: Path
    name: str
    seen: State

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.seen.size

    def part(self, start: int, stop: int) -> bytes:
        """Return a part of the file.

        Raises:
            InputError: it cannot be read any more, or was changed since it was opened.
        """
        try:
            with self.path.open("rb") as stream:
                before = state(os.fstat(stream.fileno()))
                stream.seek(start)
                found = stream.read(stop - start)
                after = state(os.fstat(stream.fileno()))
        except OSError as error:
            raise InputError(f"{self.name}: could not be read any more ({error.strerror})") from None
        if before != self.seen or after != self.seen or len(found) != stop - start:
            raise InputError(f"{self.name}: was changed since it was opened", fix="load it again")
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return InMemory, (self.part(0, self.size),)  # another process need not have the file

    def __deepcopy__(self, memo: object) -> OnDisk:
        return self


def open_content(path: Path, name: str) -> Content:
    """Return the bytes of a file: read at once where that is `IN_MEMORY` at most, else read when they are asked for.

    Args:
        path: the file.
        name: what errors call it.

    Raises:
        OSError: it cannot be opened.
        InputError: it is a device or a pipe, or was changed while it was read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for somebody to write to it
        raise InputError(f"{name}: is a device or a pipe, not a file")
    with path.open("rb") as stream:
        about = os.fstat(stream.fileno())
        if about.st_size > IN_MEMORY:
            return OnDisk(path, name, state(about))
        found = stream.read(about.st_size + 1)
    if len(found) != about.st_size:
        raise InputError(f"{name}: was changed while it was read", fix="load it again")
    return InMemory(found)
