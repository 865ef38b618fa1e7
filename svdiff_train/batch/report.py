"""The report of a manifest: one line of JSON per row, written as the rows are done, and read to go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import filelock
import msgspec

from svdiff_delta._util.atomic import check_output, drop_lock, replace_file
from svdiff_delta._util.json import check_nodes, strict_json
from svdiff_delta._util.limits import LINE, REPORT_LINES
from svdiff_delta._util.reading import read_bytes
from svdiff_delta._util.typed import build
from svdiff_delta.errors import InputError, MetadataError, OutputError

from .row import Row
from .table import HEAD, complaints, render
from .work import Result

STARTED: Final = "started"
"""The status of a row that was never done."""


class _Row(msgspec.Struct):
    """What is read of the row in a line."""

    input: str
    output: str


class _Line(msgspec.Struct):
    """What is read of a line; what else it says stays in it."""

    key: str
    row: _Row
    status: str
    begun: bool = False
    error: str | None = None
    captured: float | None = None
    retained: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    unchanged: int | None = None
    left_out: dict[str, str] = {}
    remarks: list[str] = []
    states: dict[str, str] = {}
    output_sha256: str | None = None
    seconds: float = 0.0


class Report:
    """A report that this process alone writes, as a context manager.

    Lines are appended and forced to the disk one by one, so that a killed run loses nothing but a torn last line. In
    the end, and when interrupted, it is written anew, atomically, with one line per row, and a table beside it.

    Args:
        path: the file; it need not exist.

    Raises:
        InputError: it is no report, or another run writes it now.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.table: Final = path.with_suffix(".txt")
        """The same for people: a table of the rows of the last run, and what is wrong with them."""
        self.lines: Final[dict[str, dict[str, Any]]] = {}
        """The last line on each row, by key."""
        self._stream: IO[bytes] | None = None
        self._lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)

    def __enter__(self) -> Self:
        check_output(self.path, overwrite=True)
        try:
            self._lock.acquire()
            size = self.read()
            self._stream = self.path.open("ab")
            self._stream.truncate(size)
        except filelock.Timeout:
            raise InputError(f"{self.path}: another run writes this report", fix="wait for it, or stop it") from None
        except OSError as error:
            self._release()
            raise OutputError(f"{self.path}: could not be opened ({error.strerror})") from None
        except BaseException:
            self._release()
            raise
        return self

    def _release(self) -> None:
        place = Path(self._lock.lock_file)
        if self._lock.is_locked:
            with suppress(OSError):
                place.unlink()
        self._lock.release()
        drop_lock(place)  # that it was got may not be noted yet when a signal comes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        with suppress(OSError):
            if not self.path.stat().st_size:
                self.path.unlink()  # nothing was started
        self._release()

    def _check_table(self) -> None:
        """Raise InputError if something else lies in the place of the table."""
        try:
            with self.table.open("rb") as stream:
                begin = stream.read(len(HEAD))
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self.table}: could not be read ({error.strerror})") from None
        if begin != HEAD.encode():
            raise InputError(
                f"{self.table}: is not the table of a report", fix="name another file for the report with `report`"
            )

    def read(self) -> int:
        """Read the lines that are there; return where the last whole one ends.

        Raises:
            InputError: the file is no report, or something else lies in the place of its table.
            OutputError: that cannot be read.
        """
        self._check_table()
        try:
            raw = read_bytes(self.path, REPORT_LINES.bytes)
        except InputError:
            if not self.path.exists():
                return 0
            raise
        end = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[:end].splitlines(), 1):
            fields = self._parse(number, line)
            self.lines[fields["key"]] = fields
        if raw and not end and not raw.startswith(b"{"):
            raise InputError(f"{self.path}: is not a report", fix="name another file with `report`")
        return end

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self.path}: line {number}"
        try:
            if len(line) > LINE:
                raise InputError(f"{where}: has more than {LINE:,} bytes")
            check_nodes(line, where, REPORT_LINES, InputError)
            fields: dict[str, Any] = strict_json(line, where, MetadataError)
            build(_Line, fields, where)
        except (InputError, MetadataError) as error:
            reason = error.message.removeprefix(where).lstrip(": ")
            raise InputError(
                f"{where}: {reason}, so this is not a report", fix="name another file with `report`"
            ) from None
        return fields

    def start(self, *rows: Row) -> None:
        """Note that rows begin: from now on what lies in the place of their outputs may be their own.

        What the line on an earlier run says stays, so that nothing is done again if this one is killed.
        """
        before = [self.lines.get(row.key, {"status": STARTED}) for row in rows]
        self._append(
            *(
                {**line, "key": row.key, "row": row.described(), "begun": True}
                for line, row in zip(before, rows, strict=True)
            )
        )

    def add(self, result: Result) -> None:
        """Note what became of a row. Of one that was passed over the earlier line stays."""
        if result.status == "passed over":
            self._append({**result.record(), "status": "converted"})
        else:
            self._append(result.record())

    def _append(self, *lines: dict[str, Any]) -> None:
        if self._stream is None:
            raise OutputError(f"{self.path}: is not open")
        self.lines.update({fields["key"]: fields for fields in lines})
        try:
            self._stream.writelines(map(_line, lines))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: could not be written ({error.strerror})") from None

    def finish(self, rows: Iterable[Row]) -> None:
        """Write the report anew, and the table: lines of other manifests first, then one per row, in their order."""
        keys = dict.fromkeys(row.key for row in rows)
        others = [fields for key, fields in self.lines.items() if key not in keys]
        own = [self.lines[key] for key in keys if key in self.lines]
        with replace_file(self.path, overwrite=True) as stream:
            stream.writelines(_line(fields) for fields in [*others, *own])
        with replace_file(self.table, overwrite=True) as stream:
            stream.writelines(f"{text}\n".encode() for text in (render(own), *complaints(own)))

    def knows(self, row: Row) -> bool:
        """Tell whether a row was begun or done before, so that its output may be its own."""
        line = self.lines.get(row.key, {})
        return "output_sha256" in line or self.began(row)

    def began(self, row: Row) -> bool:
        """Tell whether an earlier run was killed in the middle of a row."""
        return bool(self.lines.get(row.key, {}).get("begun"))

    def before(self, row: Row) -> Mapping[str, Any] | None:
        """Return the line on a row from an earlier run, if there is one."""
        return self.lines.get(row.key)


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, sort_keys=True).encode() + b"\n"
