"""Keep in SQLite what looks at files have found, so that a store of many is open again within a moment.

It is a cache: whatever is wrong with it, or with its disk, costs the looks again and nothing else. What is no index is
never written to and never removed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from svdiff_delta._util.file_state import State
from svdiff_delta._util.reading import regular_file, system_errors
from svdiff_delta.errors import InputError

from .digest import Looked

VERSION: Final = 2
OURS: Final = 0x53764469
"""SQLite's `application_id` of an index: "SvDi"."""

MAGIC: Final = b"SQLite format 3\0"
"""How an SQLite file begins; the application's number stands at byte 68."""

PATIENCE: Final = 5.0
"""Seconds to wait for another server that writes the same index."""

_MAKE: Final = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, digest TEXT NOT NULL, parameters TEXT NOT NULL, fault TEXT NOT NULL,
    device TEXT NOT NULL, inode TEXT NOT NULL,
    size INTEGER NOT NULL, modified INTEGER NOT NULL, changed INTEGER NOT NULL
) WITHOUT ROWID;
"""


def check_index(path: Path) -> None:
    """Check that an index may be kept at a path: there is nothing yet, or an index.

    Raises:
        InputError: another file is there, or what is there cannot be read.
    """
    with system_errors(path, InputError):
        if not path.exists():
            return
    with regular_file(path) as stream:
        raw = stream.read(72)
    if raw and not (raw.startswith(MAGIC) and int.from_bytes(raw[68:72], "big") == OURS):
        raise InputError(f"{path}: is another file, and no index", fix="name another place for the index")


class Row(NamedTuple):
    """What is known of a file."""

    path: str
    looked: Looked


class Index:
    """The looks at files, by path and by content; one that cannot be kept on disk is kept in memory.

    Args:
        path: the SQLite file; None keeps it in memory.
        say: is told, in one line, what is wrong with it.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            try:
                check_index(self._path)
            except InputError as error:
                self._say(f"{error.message}; the index is kept in memory")
                self._path = None
                return self._connected(None)
            try:
                return self._connected(self._path)
            except (sqlite3.Error, OSError) as error:
                self._say(f"{self._path}: the index could not be opened ({error}); it is made anew")
            try:
                self._path.unlink(missing_ok=True)
                return self._connected(self._path)
            except (sqlite3.Error, OSError) as error:
                self._say(f"{self._path}: the index cannot be kept on disk ({error}); it is kept in memory")
        return self._connected(None)

    @staticmethod
    def _connected(path: Path | None) -> sqlite3.Connection:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        found = sqlite3.connect(path or ":memory:", timeout=PATIENCE, check_same_thread=False)
        try:
            found.executescript("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;")
            if found.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
                raise sqlite3.DatabaseError("another version wrote it")
            found.executescript(f"PRAGMA application_id = {OURS}; {_MAKE} PRAGMA user_version = {VERSION};")
        except BaseException:
            found.close()
            raise
        return found

    def rows(self) -> Iterator[Row]:
        """Yield what is known of each file."""
        try:
            with closing(self._connection.execute("SELECT * FROM files")) as found:
                for path, digest, table, fault, device, inode, *rest in found:
                    yield Row(path, Looked(digest, table, fault, State(int(device), int(inode), *rest)))
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._lose(error)

    def write(self, rows: Iterable[Row], gone: Iterable[str]) -> None:
        """Note looks, and forget files."""
        new = [_values(path, looked) for path, looked in rows]
        old = [(path,) for path in gone]
        try:
            with self._connection:
                self._connection.executemany("DELETE FROM files WHERE path = ?", old)
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)", new)
        except sqlite3.Error as error:
            self._lose(error)
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)", new)

    def _lose(self, error: Exception) -> None:
        """Go on in memory: what was known is looked at again when the store is opened next."""
        if self._path is not None:
            self._say(f"{self._path}: the index could not be used ({error}); it is kept in memory from now on")
        self.close()
        self._path = None
        self._connection = self._connected(None)

    def close(self) -> None:
        """Let go of the file."""
        with suppress(sqlite3.Error):
            self._connection.close()


def _values(path: str, looked: Looked) -> tuple[str | int, ...]:
    """Return a row of the table; numbers of files may be larger than SQLite's."""
    seen = looked.seen
    about = (path, looked.digest, looked.table, looked.fault, str(seen.device), str(seen.inode))
    return (*about, seen.size, seen.modified, seen.changed)
