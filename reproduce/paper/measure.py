"""Measuring cells in several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

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
    """
    begun, waiting = time.monotonic(), list(reversed(cells))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: dict[Future[float], Cell] = {}

        def start() -> None:
            while waiting and len(running) < jobs and (seconds is None or time.monotonic() - begun < seconds):
                cell = waiting.pop()
                running[pool.submit(_run, cell, work, out, base)] = cell

        start()
        while running:
            done = next(as_completed(running))
            cell = running.pop(done)
            left = len(waiting) + len(running)
            say(f"{done.result():6.1f} s  ({cell.experiment}) {cell.name}; {left} left")
            start()
    return len(waiting)
