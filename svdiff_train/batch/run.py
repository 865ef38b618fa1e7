"""Doing all rows of a manifest: side by side, going on where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from svdiff_delta._util.paths import Places
from svdiff_delta.errors import InputError

from .manifest import check_rows, read_manifest
from .process_pool import run_tasks
from .report import Report
from .row import Row
from .work import Result, convert_one

Watch = Callable[[Result, int, int], None]
"""Called with a result, how many rows are done, and how many there are."""

Task = tuple[Row, bool, Mapping[str, Any] | None]
"""The arguments of `convert_task`."""

Share = Callable[[Sequence[Task]], Generator[tuple[int, Result | None]]]
"""Yields the index and result of every task as it is done, whoever does it; None where that died of it."""


def run_manifest(
    path: Path,
    report: Path | None = None,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    dry_run: bool = False,
    watch: Watch | None = None,
    share: Share | None = None,
) -> list[Result]:
    """Convert all files of a manifest, and return what became of each row, in order.

    Everything is checked first. Rows that the report tells of, and whose output, input and base are what it says, are
    passed over. What fails is in the result, and the rest goes on.

    Args:
        path: the manifest.
        report: where the report is read and written; the manifest's name with `.report.jsonl` if not given. The same
            as a table lies beside it, with `.txt`.
        jobs: how many processes; with 1 all is done in this one.
        overwrite: do every row anew, and replace whatever lies in the place of its output.
        dry_run: only check; nothing is returned or written.
        watch: called after each row.
        share: what does the rows instead of `jobs` processes, perhaps elsewhere: inputs that only the Hub has are not
            looked at before it begins.

    Raises:
        InputError: the manifest or the report cannot be used, or a row cannot work: nothing was started.
        OutputError: the report cannot be written.
    """
    if jobs < 1:
        raise InputError(f"there must be at least 1 process, not {jobs}", fix="give `jobs=1`")
    rows = read_manifest(path)
    place = report or path.with_name(f"{path.stem}.report.jsonl")
    lines = Report(place)
    taken = Places()
    for other in (path, *(row.place(row.output) for row in rows)):
        taken.add(other, "taken")
    if taken.meet(lines.path) or taken.meet(lines.table) or lines.path == lines.table:
        raise InputError(
            f"{place}: the report or its table would be the manifest, an output or one another",
            fix="give another `report`, such as all.report.jsonl",
        )
    if dry_run:
        lines.read()
        check_rows(path, rows, allowed=lambda row: overwrite or lines.knows(row), fetch=share is None)
        return []
    with lines:
        check_rows(path, rows, allowed=lambda row: overwrite or lines.knows(row), fetch=share is None)
        return _run(rows, lines, min(jobs, len(rows)), watch, share, overwrite=overwrite)


def _run(
    rows: list[Row], report: Report, jobs: int, watch: Watch | None, share: Share | None, *, overwrite: bool
) -> list[Result]:
    found: dict[int, Result] = {}
    try:
        for index, result in _results(rows, report, jobs, share, overwrite=overwrite):
            found[index] = result
            report.add(result)
            if watch is not None:
                watch(result, len(found), len(rows))
    finally:
        report.finish(rows)
    return [found[index] for index in range(len(rows))]


def _results(
    rows: list[Row], report: Report, jobs: int, share: Share | None, *, overwrite: bool
) -> Iterator[tuple[int, Result]]:
    """Yield index and result of each row as it is done."""
    tasks: list[Task] = []
    for row in rows:
        before = None if overwrite else report.before(row)
        tasks.append((row, overwrite or report.began(row), before))
    if share is not None:
        report.start(*rows)
        with closing(share(tasks)) as results:
            for index, result in results:
                yield index, result or _died(rows[index])
        return
    if jobs == 1:
        for index, task in enumerate(tasks):
            report.start(rows[index])
            yield index, convert_task(*task)
        return
    with closing(run_tasks(convert_task, tasks, jobs, lambda index: report.start(rows[index]))) as results:
        for index, result in results:
            yield index, result or _died(rows[index])


def convert_task(row: Row, overwrite: bool, before: Mapping[str, Any] | None) -> Result:
    """Return `convert_one` of a row, as the processes are asked for it."""
    return convert_one(row, overwrite=overwrite, before=before)


def _died(row: Row) -> Result:
    why = "its process died, as it does when memory ends: use fewer `jobs`"
    return Result(key=row.key, row=row.described(), status="failed", error=why)
