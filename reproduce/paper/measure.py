"""Measuring cells in several processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from svdiff_train.batch.process_pool import run_tasks
from svdiff_train.training.threads import computing

from .cell import Cell
from .lab import Lab
from .sight import Sight


@cache
def _room(work: Path) -> tuple[Lab, Sight]:
    """Return this process's lab."""
    return Lab(work), Sight()


def _run(cell: Cell, work: Path, out: Path, base: str) -> float:
    with computing(threads=1):
        return cell.run(*_room(work), out, base)


def measure(
    cells: Sequence[Cell],
    work: Path,
    out: Path,
    base: str,
    jobs: int,
    seconds: float | None,
    say: Callable[[str], None],
) -> int:
    """Measure cells side by side until all are done or the time is over; return how many are left.

    Args:
        cells: what is not measured yet.
        work: where trainings are kept.
        out: where numbers and pictures go.
        base: the base's digest.
        jobs: how many processes, each with one thread.
        seconds: after which no cell is begun; None for no limit.
        say: called with a line after each cell.

    Raises:
        RuntimeError: a cell went wrong; its process has printed why.
    """
    begun, waiting = time.monotonic(), deque(cells)

    def tasks() -> Iterator[tuple[Cell, Path, Path, str]]:
        while waiting and (seconds is None or time.monotonic() - begun < seconds):
            yield waiting.popleft(), work, out, base

    left = len(cells)
    with closing(run_tasks(_run, tasks(), jobs, lambda _: None)) as results:
        for index, took in results:
            cell = cells[index]
            if took is None:
                raise RuntimeError(f"({cell.experiment}) {cell.name} could not be measured: its process has said why")
            left -= 1
            say(f"{took:6.1f} s  ({cell.experiment}) {cell.name}; {left} left")
    return len(waiting)
