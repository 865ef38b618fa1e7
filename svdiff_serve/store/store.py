"""Keep a store of δ: what there is by name, checked when it comes, watched for changes while it is served."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from sys import intern
from typing import Final

from svdiff_delta._text.printable import counted
from svdiff_delta._util.file_state import RACY, State
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import DeltaError, FormatError, is_out_of_memory
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import file_digest, loads
from svdiff_serve.errors import UnknownDeltaError
from svdiff_serve.mixes import unknown

from .digest import LARGEST, Looked, Looker, check_values
from .index import PATIENCE, Index, Row
from .sources import Place, Source

WORKERS: Final = min(4, os.cpu_count() or 1)
"""Threads that look at files: hashing and reading wait for no other thread."""

TOGETHER: Final = 64
"""Files that a thread looks at in one go."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One δ of a store.

    Attributes:
        name: what mixes call it.
        path: its file.
        digest: the SHA-256 of its content.
        table: what says which base and layers it is for.
        changed: when the file was changed last, in seconds since 1970.
        fault: why it cannot be used; empty if it can.
        size: bytes of its file.
        reference: what commands and recipes call it, in a folder as its source is.
    """

    name: str
    path: str
    digest: str
    table: str
    changed: int
    fault: str
    size: int
    reference: str


class Store:
    """The deltas of several sources.

    Args:
        sources: where they come from; of two that give one name the first counts.
        judge: called with the first δ of each table of parameters; raises DeltaError if it is not for what is served.
        index: the SQLite file of what looks have found; None keeps it in memory.
        say: is told, in one line, what is left out and why.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        judge: Callable[[Delta], object],
        *,
        index: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._sources, self._judge, self._say = tuple(sources), judge, say
        self._looker, self._lock = Looker(), threading.Lock()
        self._index = Index(index, say)
        self._known: dict[str, Looked] = {}
        for row in self._index.rows():
            self._known[row.path] = _interned(row.looked)
        self._young: set[str] = set()
        self._entries: Mapping[str, Entry] = {}
        self._names: list[str] = []
        self._verdicts: dict[str, str] = {}
        self._told: set[str] = set()
        self._stop = threading.Event()

    # -- what there is

    def names(self) -> list[str]:
        """Return the names of all deltas that can be used, sorted."""
        return list(self._names)

    def entries(self) -> list[Entry]:
        """Return all deltas that can be used, sorted by name."""
        return [entry for _, entry in sorted(self._entries.items()) if not entry.fault]

    def all(self) -> list[Entry]:
        """Return all deltas, those that cannot be used too, sorted by name."""
        return [entry for _, entry in sorted(self._entries.items())]

    def known(self, name: str) -> Entry:
        """Return what is known of a δ, whether it can be used or not; raise UnknownDeltaError if there is none."""
        found = self._entries.get(name)
        if found is None:
            raise unknown(name, self._names)
        return found

    def faults(self) -> dict[str, str]:
        """Return why deltas cannot be used, by name."""
        return {name: entry.fault for name, entry in sorted(self._entries.items()) if entry.fault}

    def entry(self, name: str) -> Entry:
        """Return what is known of a δ.

        Raises:
            UnknownDeltaError: there is none of this name, or it cannot be used; the message says why.
        """
        found = self._entries.get(name)
        if found is None:
            raise unknown(name, self._names)
        if found.fault:
            raise UnknownDeltaError(f"the delta {name!r} cannot be used: {found.fault}", field="model")
        return found

    def open(self, entry: Entry) -> Delta:
        """Return a δ of the store, all of it read and checked.

        Raises:
            UnknownDeltaError: its file has gone, or holds another content now.
        """
        try:
            return self._read(entry)
        except DeltaError as error:
            raise UnknownDeltaError(
                f"the delta {entry.name!r} cannot be used: {_reason(error, entry.path)}",
                fix="try again in a moment",
                field="model",
            ) from None

    def _read(self, entry: Entry) -> Delta:
        """Return a δ of the store; if its file is not what was looked at, the next refresh looks again."""
        try:
            delta = loads(read_bytes(Path(entry.path), LARGEST), name=entry.name)
            if file_digest(delta)[0] != entry.digest:
                raise FormatError("its file was changed, and has not been looked at again yet")
        except DeltaError:
            self._young.add(entry.path)
            raise
        return delta

    # -- what changes

    def refresh(self) -> bool:
        """Look at what is new or changed, and forget what has gone; what is served meanwhile stays as it was.

        Returns:
            Whether anything is other than before.
        """
        with self._lock:
            places = self._places()
            new = [place for place in places.values() if self._is_new(place)]
            rows = self._look_at(new)
            there = {place.path for place in places.values()}
            gone = self._known.keys() - there
            for path in gone:
                del self._known[path]
                self._young.discard(path)
            if rows or gone:
                self._index.write(rows, gone)
            entries = {name: self._entry(place) for name, place in places.items() if place.path in self._known}
            changed = entries != self._entries
            self._entries = entries
            self._names = sorted(name for name, entry in entries.items() if not entry.fault)
            if changed:
                self._tell(entries)
            return changed

    def _places(self) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for source in self._sources:
            for place in source.places(self._say_once):
                if place.name in found:
                    self._say_once(f"{place.path}: there is another delta {place.name!r}; this one is left out")
                elif not place.name.isprintable():
                    self._say_once(f"{place.path}: its name cannot be shown; it is left out")
                else:
                    found[place.name] = place
        return found

    def _is_new(self, place: Place) -> bool:
        path = place.path
        known = self._known.get(path)
        # What could not be read at all has no digest; that may have been for want of memory or open files.
        return known is None or not known.digest or known.seen != place.seen or path in self._young

    def _look_at(self, places: Sequence[Place]) -> list[Row]:
        """Look at files, several at once, and return what was found."""
        chunks = [places[first : first + TOGETHER] for first in range(0, len(places), TOGETHER)]
        rows: list[Row] = []
        with ThreadPoolExecutor(WORKERS, "svdiff-look") as threads:
            for found in threads.map(self._look_at_some, chunks):
                rows += found
        now = time.time_ns()
        for path, looked in rows:
            self._known[path] = _interned(looked)
            # Within the granule of its times a file may change once more and look the same.
            (self._young.add if _is_young(looked.seen, now) else self._young.discard)(path)
        return rows

    def _look_at_some(self, places: Iterable[Place]) -> list[Row]:
        rows = []
        for place in places:
            path = place.path
            try:
                rows.append(Row(path, self._looker.look(path)))
            except DeltaError as error:
                rows.append(Row(path, Looked("", "", _reason(error, path), place.seen)))
        return rows

    def _entry(self, place: Place) -> Entry:
        known = self._known[place.path]
        entry = Entry(
            name=place.name,
            path=place.path,
            digest=known.digest,
            table=known.table,
            changed=known.seen.modified // 10**9,
            fault=known.fault,
            size=known.seen.size,
            reference=place.reference,
        )
        if entry.fault:
            return entry
        fault = self._verdicts.get(entry.table)
        if fault is None:
            fault = self._verdict(entry)
        return replace(entry, fault=fault) if fault else entry

    def _verdict(self, entry: Entry) -> str:
        """Return why a δ cannot be used; empty if it can. What is wrong with its table counts for all others of it."""
        try:
            delta = self._read(entry)
            check_values(delta)
        except DeltaError as error:
            return _reason(error, entry.path)
        try:
            self._judge(delta)
        except DeltaError as error:
            fault = str(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return "there was not enough memory to take it in"
        else:
            fault = ""
        self._verdicts[entry.table] = fault
        return fault

    def _tell(self, entries: Mapping[str, Entry]) -> None:
        for name, entry in entries.items():
            if entry.fault:
                self._say_once(f"{name}: left out: {entry.fault}")

    def _say_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def watch(self, every: float) -> threading.Thread:
        """Refresh every so many seconds, on a thread of its own, until `close`."""

        def run() -> None:
            while not self._stop.wait(every):
                try:
                    if self.refresh():
                        self._say(f"the store has {counted(len(self.names()), 'delta')} now")
                except Exception as error:  # noqa: BLE001 - the watch goes on, whatever one look meets
                    self._say_once(f"the store could not be looked at: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, name="svdiff-store", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Stop watching, and let go of the index."""
        self._stop.set()
        if self._lock.acquire(timeout=PATIENCE):  # who prepares a large base for new layers is not waited for
            try:
                self._index.close()
            finally:
                self._lock.release()


def _reason(error: DeltaError, path: str) -> str:
    """Return what is wrong with a file, without saying where on this machine it is: clients are told."""
    return error.message.removeprefix(f"{path}: ")


def _interned(looked: Looked) -> Looked:
    """Return the same, with one string for each table: tens of thousands of files share a few."""
    return Looked(looked.digest, intern(looked.table), intern(looked.fault), looked.seen)


def _is_young(seen: State, now: int) -> bool:
    return now - max(seen.modified, seen.changed) < RACY
