"""`python -m svdiff_train.paper`: measure what is not measured yet, and write the report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from .cell import Cell
from .lab import Lab, base_digest
from .plan import all_cells, quick_cells, trainings
from .report import write_report
from .sight import Sight


@cache
def _room(work: Path) -> tuple[Lab, Sight]:
    """Return this process's lab."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return Lab(work), Sight()


def _run(cell: Cell, work: Path, out: Path, base: str) -> float:
    return cell.run(*_room(work), out, base)


def measure(cells: Sequence[Cell], work: Path, out: Path, base: str, jobs: int, seconds: float | None) -> int:
    """Measure cells side by side until all are done or the time is over; return how many are left.

    Args:
        cells: what is not measured yet.
        work: where trainings are kept.
        out: where numbers and pictures go.
        base: the base's digest.
        jobs: how many processes, each with one thread.
        seconds: after which no cell is begun; None for no limit.
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
            print(f"{done.result():6.1f} s  ({cell.experiment}) {cell.name}; {left} left", file=sys.stderr, flush=True)
            start()
    return len(waiting)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m svdiff_train.paper", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), help="folder of the report, its cells and pictures"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("paper-out"), help="folder of trainings, which may be deleted"
    )
    parser.add_argument("--quick", action="store_true", help="one subject and one seed, in a report of its own")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many minutes")
    parser.add_argument("--only", help="letters of experiments, such as ab")
    args = parser.parse_args(argv)
    base = base_digest()
    cells = quick_cells() if args.quick else all_cells()
    chosen = [cell for cell in cells if args.only is None or cell.experiment in args.only]
    missing = [cell for cell in chosen if cell.known(args.out, base) is None]
    print(
        f"{len(missing)} of {len(chosen)} cells to measure, {trainings(missing)} trainings", file=sys.stderr, flush=True
    )
    limit = None if args.minutes is None else args.minutes * 60
    measure(missing, args.work, args.out, base, args.jobs, limit)
    print(f"wrote {write_report(args.out, cells, base)}")


if __name__ == "__main__":
    main()
