"""The memory of fingerprints: a weight file that has not changed is not hashed again.

Each weight file has one JSON document under `home() / "fingerprints"`. It is found by a hash of the file's path, and
holds for the size, time and inode that stand in it; a blob of a Hub cache, whose name is a hash of its content, is
found by that name. No path stands in it. The memory is only ever a shortcut: what is damaged, or cannot be written, is
left.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from ._atomic import replace_file
from .base import Base
from .cache import home
from .codec import DTYPES, Dtype
from .entry import PROTOCOL
from .errors import OutputError

RACY: Final = 2_000_000_000
"""Nanoseconds in which a file may change once more without a new time: one that young is not remembered."""

PAUSE: Final = 1.0
"""Seconds between two writes of one document; what is new is also written when the process ends."""

MOST: Final = 256
"""Documents held in memory; beyond that all are written and let go."""

_BLOB: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FINGERPRINT: Final = re.compile(r"[A-Za-z0-9_-]{22}")

State = tuple[int, ...]
"""What a file must still be like: size, time and inode; the size alone for a blob."""


class Known(NamedTuple):
    """What is remembered of a weight: its basis dtype, its fingerprint when rounded to that, and its shape."""

    dtype: Dtype
    fingerprint: str
    shape: tuple[int, ...]


@dataclass
class _Document:
    """The memory of one weight file."""

    path: Path
    state: State
    entries: dict[str, Known]
    new: bool = False
    written: float = field(default_factory=time.monotonic)


_documents: Final[dict[tuple[Path, State], _Document]] = {}
_lock: Final = threading.RLock()


def recall(base: Base, name: str, axis: int, dtype: Dtype | None) -> Known | None:
    """Return what is remembered of a base's weight; None if nothing is, or its file has changed since.

    Args:
        base: an opened base.
        name: the parameter.
        axis: the axis of output channels.
        dtype: the basis dtype; None for the one that a writer chooses.

    Raises:
        BaseError: the base lacks the parameter.
    """
    with _lock:
        document = _document(base, name)
        return document.entries.get(_entry(base, name, axis, dtype)) if document else None


def remember(base: Base, name: str, axis: int, dtype: Dtype | None, known: Known) -> None:
    """Remember a base's weight; the arguments are those of `recall`."""
    with _lock:
        document = _document(base, name)
        if document is None:
            return
        # What was chosen holds as well where a file gives that dtype.
        for given in {dtype, known.dtype}:
            document.entries[_entry(base, name, axis, given)] = known
        document.new = True
        if time.monotonic() - document.written > PAUSE:
            _write(document)


def flush() -> None:
    """Write what is new."""
    with _lock:
        for document in _documents.values():
            _write(document)


atexit.register(flush)


def _entry(base: Base, name: str, axis: int, dtype: Dtype | None) -> str:
    return f"{dtype or 'chosen'} {axis} {base.locate(name)[1]}"


def _document(base: Base, name: str) -> _Document | None:
    """Return the memory of the file that holds a weight; None if the file cannot be told from a changed one."""
    component, _, path, _ = base.locate(name)
    opened = component.opened[path][1]
    try:
        now = path.stat()
    except OSError:
        return None
    state: State = (now.st_size, now.st_mtime_ns, now.st_ino)
    if state != (opened.st_size, opened.st_mtime_ns, opened.st_ino):
        return None
    what = _what(path, now.st_ino)
    if what.startswith("blob "):
        state = (now.st_size,)
    elif time.time_ns() - now.st_mtime_ns < RACY:
        return None
    place = home() / "fingerprints" / f"{hashlib.sha256(what.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
    if (place, state) not in _documents:
        if len(_documents) >= MOST:
            flush()
            _documents.clear()
        _documents[place, state] = _Document(place, state, _read(place, state))
    return _documents[place, state]


@lru_cache(maxsize=MOST)
def _what(path: Path, inode: int) -> str:  # noqa: ARG001 - a name may come to mean another file
    """Return what a file is known by: the name of a Hub cache's blob, else its path without links."""
    real = Path(os.path.realpath(path))
    if real.parent.name == "blobs" and real.parent.parent.name.startswith("models--") and _BLOB.fullmatch(real.name):
        return f"blob {real.name}"
    return f"path {real}"


def _read(path: Path, state: State) -> dict[str, Known]:
    """Return the entries of a document; none if it is damaged, or about another state of the file."""
    try:
        document: Any = json.loads(path.read_bytes())
        if document["protocol"] != PROTOCOL or tuple(document["state"]) != state:
            return {}
        return {str(key): _known(*fields) for key, fields in document["entries"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _known(dtype: Any, fingerprint: Any, shape: Any) -> Known:
    sides = tuple(shape)
    if dtype not in DTYPES or not _FINGERPRINT.fullmatch(fingerprint) or not all(type(side) is int for side in sides):
        raise ValueError("a damaged entry")
    return Known(dtype, fingerprint, sides)


def _write(document: _Document) -> None:
    """Write a document together with what another process has written there meanwhile."""
    if not document.new:
        return
    document.new, document.written = False, time.monotonic()
    document.entries.update({**_read(document.path, document.state), **document.entries})
    text = json.dumps(
        {"entries": document.entries, "protocol": PROTOCOL, "state": document.state}, sort_keys=True, indent=0
    )
    with suppress(OSError, OutputError):
        document.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(document.path, overwrite=True) as stream:
            stream.write(text.encode())
