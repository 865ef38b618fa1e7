"""Remember fingerprints, so that a weight file that has not changed is not hashed again.

Each weight file has one JSON document under `home() / "fingerprints"`. It is found by a hash of the file's path, and
holds for the state and the sample of the file that stand in it. A blob of a Hub cache is found by its name, which is a
hash of its content; once that was computed and is right, what is remembered holds wherever the blob lies, and it is
computed again when the state is another one. No path stands in it. The memory is only ever a shortcut: whatever cannot
be told for certain is hashed again (`state` says when that is), what is damaged or cannot be written is left.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from svdiff_delta._util import file_state as files
from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.file_state import State
from svdiff_delta._util.home import home
from svdiff_delta.errors import OutputError
from svdiff_delta.format.dtypes import DTYPES, Dtype
from svdiff_delta.hub_client.blobs import blob_name, is_sound

from .cache_entry import PROTOCOL

if TYPE_CHECKING:
    from svdiff_delta.base_model.opened import Base

PAUSE: Final = 1.0
"""Seconds between two writes of one document; what is new is also written when the process ends."""

MOST: Final = 256
"""Documents held in memory; beyond that all are written and let go."""

_FINGERPRINT: Final = re.compile(r"[A-Za-z0-9_-]{22}")


class Known(NamedTuple):
    """The remembered facts of a weight: its basis dtype, its fingerprint when rounded to that, and its shape."""

    dtype: Dtype
    fingerprint: str
    shape: tuple[int, ...]


@dataclass
class _Document:
    """The memory of one weight file: what it holds for, and where it is kept.

    Attributes:
        path: of the document.
        state, sample: what the file must still be like.
        blob: whether the file is a blob whose hash was found right, so that they need not be.
        entries: what is remembered of each weight.
        unsure: whether the file is a blob whose hash nobody has computed yet.
        checking: whether a thread does that now, before which nothing is written.
    """

    path: Path
    state: State
    sample: str
    blob: bool
    entries: dict[str, Known] = field(default_factory=dict)
    unsure: bool = False
    checking: bool = False
    new: bool = False
    written: float = field(default_factory=time.monotonic)


_documents: Final[dict[tuple[Path, State], _Document]] = {}
"""By home and state of the file."""

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
    found = _state(base, name)
    if found is None:
        return None
    with _lock:
        document = _documents.get((home(), found)) or _open(base, name, found)
        return document.entries.get(_entry(base, name, axis, dtype)) if document else None


def remember(base: Base, name: str, axis: int, dtype: Dtype | None, known: Known) -> None:
    """Remember a base's weight; the arguments are those of `recall`, which was asked before the weight was read.

    A file whose state did not tell enough then is not remembered, even if it does now: it may have changed since.
    """
    found = _state(base, name)
    with _lock:
        document = _documents.get((home(), found)) if found else None
        if document is None:
            return
        # What was chosen holds as well where a file gives that dtype.
        for given in {dtype, known.dtype}:
            document.entries[_entry(base, name, axis, given)] = known
        document.new = True
        if not document.unsure and time.monotonic() - document.written > PAUSE:
            _write(document)
        check, document.unsure = document.unsure, False
        document.checking |= check
    if check:
        _check_blob(base.locate(name)[2], document)


def _check_blob(path: Path, document: _Document) -> None:
    """Remember by a blob's name what was remembered by its path, if the blob holds what its name says."""
    try:
        sound = _holds(path, document.state)
    except BaseException:  # stopped; the next one does it
        document.unsure, document.checking = True, False
        raise
    with _lock:
        if sound:
            document.path, document.blob = _place(f"blob {blob_name(path)}"), True
        document.checking = False
        _write(document)


def flush() -> None:
    """Write what is new."""
    with _lock:
        for document in _documents.values():
            _write(document)


atexit.register(flush)


def _entry(base: Base, name: str, axis: int, dtype: Dtype | None) -> str:
    component, key, _, place = base.locate(name)
    if component.original is not None:  # several components of one file may have the same keys
        key = f"{component.class_name} {key} {place.start}-{place.stop}"
    return f"{dtype or 'chosen'} {axis} {key}"


def _state(base: Base, name: str) -> State | None:
    """Return the state of the file that holds a weight; None if it is not the one in which the file was opened."""
    component, _, path, _ = base.locate(name)
    try:
        now = files.state(path.stat())
    except OSError:
        return None
    return now if now == files.state(component.opened[path][1]) else None


def _open(base: Base, name: str, found: State) -> _Document | None:
    """Return the memory of the file that holds a weight; None if its state does not tell it from a changed one."""
    component, _, path, _ = base.locate(name)
    real = Path(os.path.realpath(path))
    seen = files.sample(real, component.headers[path].data, found) if files.tells(real, found) else None
    if seen is None:
        return None
    places = _places(path, real)
    document = _kept(places, found, seen) or _begun(path, places, found, seen)
    if document is None:
        return None
    if len(_documents) >= MOST:
        flush()
        _documents.clear()
    _documents[home(), found] = document
    return document


def _kept(places: dict[bool, Path], found: State, seen: str) -> _Document | None:
    """Return what is kept of a file in this state; None if nothing is."""
    for blob, place in places.items():
        document = _Document(place, found, seen, blob)
        if _header(document)[:2] == (found, seen):
            document.entries = _read(document)
            return document
    return None


def _begun(path: Path, places: dict[bool, Path], found: State, seen: str) -> _Document | None:
    """Return a new memory of a file, with what is known of a blob of its name; None if its state is another one."""
    if not files.flush(path, found):
        return None
    blob, place = True in places, places.get(True, places[False])
    known = blob and place.exists()  # which has to be looked at first
    sound = known and _holds(path, found)
    document = _Document(place if sound else places[False], found, seen, sound, unsure=blob and not known)
    document.entries, document.new = _read(document), sound
    return document


def _holds(path: Path, found: State) -> bool:
    """Tell whether a blob in this state holds what its name says."""
    name = blob_name(path)
    try:
        return name is not None and is_sound(path, name) and files.state(path.stat()) == found
    except OSError:
        return False


def _places(path: Path, real: Path) -> dict[bool, Path]:
    """Return where the memory of a file lies: as a sound blob, and by its path without links."""
    blob = blob_name(path)
    whats = ({True: f"blob {blob}"} if blob else {}) | {False: f"path {real}"}
    return {sound: _place(what) for sound, what in whats.items()}


def _place(what: str) -> Path:
    """Return where the memory of a file lies."""
    return home() / "fingerprints" / f"{hashlib.sha256(what.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"


def _header(document: _Document) -> tuple[State | None, str, dict[str, Any]]:
    """Return what is kept on disk: the state and the sample that it holds for, and entries; all empty if damaged."""
    try:
        kept: Any = json.loads(document.path.read_bytes())
        if kept["protocol"] != PROTOCOL:
            return None, "", {}
        return State(*map(int, kept["state"])), str(kept["sample"]), dict(kept["entries"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, "", {}


def _read(document: _Document) -> dict[str, Known]:
    """Return the entries on disk; none if they are damaged, or about another state of a file that is no sound blob."""
    found, seen, entries = _header(document)
    if not document.blob and (found, seen) != (document.state, document.sample):
        return {}
    try:
        return {str(key): _known(*fields) for key, fields in entries.items()}
    except (ValueError, TypeError):
        return {}


def _known(dtype: Any, fingerprint: Any, shape: Any) -> Known:
    sides = tuple(shape)
    if dtype not in DTYPES or not _FINGERPRINT.fullmatch(fingerprint) or not all(type(side) is int for side in sides):
        raise ValueError("a damaged entry")
    return Known(dtype, fingerprint, sides)


def _write(document: _Document) -> None:
    """Write a document together with what another process has written there meanwhile."""
    if not document.new or document.checking:
        return
    document.new, document.written = False, time.monotonic()
    document.entries.update({**_read(document), **document.entries})
    about = {"protocol": PROTOCOL, "sample": document.sample, "state": document.state}
    text = json.dumps({"entries": document.entries, **about}, sort_keys=True, indent=0)
    with suppress(OSError, OutputError):
        document.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(document.path, overwrite=True) as stream:
            stream.write(text.encode())
