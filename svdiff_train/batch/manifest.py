"""Manifests: files that say which conversions to do, checked as a whole before the first one starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.atomic import check_output
from svdiff_delta._util.json_files import read_lines
from svdiff_delta._util.limits import MANIFEST, MANIFEST_LINES
from svdiff_delta._util.paths import Places
from svdiff_delta._util.yaml import read_yaml
from svdiff_delta.base_model.devices import find_device
from svdiff_delta.conversion.rank_policy import make_ranking
from svdiff_delta.conversion.respell import KEEPS_FORMATS
from svdiff_delta.conversion.route import resolve_route
from svdiff_delta.errors import DeltaError, InputError
from svdiff_train.calibrate import digest_of

from .row import KEYS, Row

SHOWN: Final = 3
"""Rows that an error names before it counts the others."""


def read_manifest(path: Path) -> list[Row]:
    """Return the rows of a manifest; their paths are relative to its folder.

    JSONL has one row per line. YAML is a mapping with the list of them in `files`; its other keys count for every row
    that does not give them itself.

    Raises:
        InputError: it cannot be read, has another suffix, has no row, or rows are wrong; the message names them.
    """
    if path.suffix in (".yaml", ".yml"):
        found = _from_yaml(path)
    elif path.suffix == ".jsonl":
        found = _from_lines(path)
    else:
        raise InputError(f"{path}: a manifest is a .yaml or .jsonl file", fix="give it the suffix of what it holds")
    if not found:
        raise InputError(f"{path}: has no row", fix="give at least one with input, output and base")
    rows: list[Row] = []
    _check_each(path, found, lambda _, given: rows.append(Row.parse(given, path.parent)))
    return rows


def _from_yaml(path: Path) -> list[Mapping[str, Any]]:
    fields = read_yaml(path, MANIFEST)
    if not isinstance(fields, dict) or not isinstance(fields.get("files"), list):
        raise InputError(f"{path}: must be a mapping with a list of rows in `files`")
    shared = {key: value for key, value in fields.items() if key != "files"}
    if unknown := sorted(str(key) for key in shared if key not in KEYS or key in ("input", "output")):
        known = ", ".join(["files", *(key for key in KEYS if key not in ("input", "output"))])
        raise InputError(f"{path}: has the unknown key {unknown[0]!r}", fix=f"known are {known}")
    return [{**shared, **_mapping(path, number, given)} for number, given in enumerate(fields["files"], 1)]


def _from_lines(path: Path) -> list[Mapping[str, Any]]:
    return [
        _mapping(path, number, fields)
        for number, fields in read_lines(path, MANIFEST_LINES, "write one JSON object per line")
    ]


def _mapping(path: Path, number: int, given: object) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{path}: row {number}: must be a mapping", fix=f"its keys are {', '.join(KEYS)}")
    return given


def check_rows(path: Path, rows: Sequence[Row], *, allowed: Callable[[Row], bool], fetch: bool = True) -> None:
    """Check what can be known before the first row starts: bases, inputs, dialects, options and outputs.

    Args:
        path: the manifest, for messages.
        rows: its rows.
        allowed: whether a row may overwrite its output.
        fetch: whether inputs that only the Hub has are fetched, to look at them; else they are taken as they are.

    Raises:
        InputError: rows cannot work; the message names the first of them.
    """
    bases: dict[tuple[str, str | None], DeltaError | None] = {}
    read, outputs = _read(path, rows), Places()

    def check(number: int, row: Row) -> None:
        place = row.place(row.output)
        if (first := outputs.meet(place)) is not None:
            raise InputError(
                f"{row.output}: is, holds or lies in the output of {first}", fix="give each row its own output"
            )
        outputs.add(place, f"row {number}")
        if (other := read.meet(place)) is not None:
            raise InputError(
                f"{row.output}: is, holds or lies in {other}, and rows run side by side",
                fix="choose another output, or put what depends on it into another manifest",
            )
        if row.base:
            _check_base(row, bases)
        if fetch or not row.is_remote():
            _check_route(row)
        if row.calibrate is not None:
            digest_of(row.place(row.calibrate))
            find_device(row.device)
        check_output(place, overwrite=allowed(row), folder=row.to == "peft")

    _check_each(path, rows, check)


def _check_route(row: Row) -> None:
    """Raise InputError if a row's arguments lead nowhere; an adapter may go to another dialect without a base."""
    if row.is_respelling():
        if row.dtype != "F32":
            raise InputError(KEEPS_FORMATS[0], fix=KEEPS_FORMATS[1])
        return
    if not row.base:
        raise InputError(f"{row.input}: is no adapter, and has no base", fix="give the row a base")
    if row.direct and row.calibrate is not None:
        raise InputError("calibrate: chooses shifts, and with `direct` there are none", fix="leave one of them away")
    resolve_route(
        row.source(),
        to=row.to,
        from_=row.from_,
        dtype=row.dtype,
        min_energy=row.min_energy,
        ranking=make_ranking(row.rank, row.energy, row.max_rank),
        same=row.direct,
    )


def _read(path: Path, rows: Sequence[Row]) -> Places:
    """Return all that the rows read; what only the Hub has is none of it."""
    found = Places()
    found.add(path, "the manifest")
    for number, row in enumerate(rows, 1):
        given = {"input": row.input, "base": row.base, "calibrate": row.calibrate, "made_on": row.made_on}
        for what, text in given.items():
            if text and os.path.lexists(place := row.place(text)):
                found.add(place, f"the {what} of row {number}")
    return found


def _check_base(row: Row, bases: dict[tuple[str, str | None], DeltaError | None]) -> None:
    """Open each base once."""
    name = row.base, row.variant
    if name not in bases:
        try:
            row.open_base()
            bases[name] = None
        except DeltaError as error:
            bases[name] = error
    if (found := bases[name]) is not None:
        raise found


def _check_each(path: Path, rows: Sequence[Any], check: Callable[[int, Any], None]) -> None:
    """Check every row; raise InputError that names the first ones that are wrong."""
    wrong = list(_wrong(rows, check))
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more rows" if len(wrong) > SHOWN else ""
        raise InputError(f"{path}: nothing was started: {'; '.join(wrong[:SHOWN])}{more}")


def _wrong(rows: Sequence[Any], check: Callable[[int, Any], None]) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        try:
            check(number, row)
        except DeltaError as error:
            yield f"row {number}: {error}"
