"""Playing the plan: round after round, until it is at its end or the time is over."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from svdiff_delta._util.ticker import Ticker

from .cell import Cell
from .found import Found
from .measure import measure
from .planner import Plan, Progress, all_cells, trainings

Say = Callable[[str], None]


def carry_out(plan: Plan, work: Path, out: Path, base: str, jobs: int, minutes: float | None, say: Say) -> bool:
    """Measure what the plan asks for, and return whether it came to its end.

    Args:
        plan: of rounds.
        work: where trainings are kept and found again, each as long as a cell may need it.
        out: where numbers and pictures go.
        base: the base's fingerprint.
        jobs: how many processes, each with one thread.
        minutes: after which no cell is begun; None for no limit.
        say: called with a line for each round and each cell.
    """
    find, progress = Found(out, base), Progress()
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for one in plan.rounds(find, progress):
        missing = one.missing(find)
        if not missing:
            continue
        say(f"{one.title}: {len(missing)} of {len(one.cells)} cells to measure, {len(trainings(missing))} trainings")
        every = [*all_cells(plan, progress.choices).values(), *one.cells]
        seconds = None if until is None else max(0.0, until - time.monotonic())
        with Ticker("measuring") as ticker:
            told = _teller(ticker, len(missing), say, partial(forget, every, find, work / base))
            if measure(_longest_first(missing), work, out, base, jobs, seconds, told):
                return False
    return True


def _longest_first(cells: Sequence[Cell]) -> list[Cell]:
    """Return the longest trainings first, so that both processes end together; otherwise the given order."""
    return sorted(cells, key=lambda cell: -sum(recipe.steps for recipe in cell.recipes))


def _teller(ticker: Ticker, total: int, say: Say, sweep: Callable[[], None]) -> Say:
    """Return what is done after each cell."""
    ended = count(1)

    def tell(line: str) -> None:
        say(line)
        ticker.tell(next(ended), total)
        sweep()

    return tell


def forget(cells: Sequence[Cell], find: Found, folder: Path) -> None:
    """Remove the results of trainings that no cell needs any more: fully tuned ones have a hundred megabytes each.

    Args:
        cells: all that the plan could ask for.
        find: finds those that are measured.
        folder: holds a folder for each training; those of other plans stay.
    """
    needed = trainings(cell for cell in cells if find(cell) is None)
    for key in trainings(cells) - needed:
        shutil.rmtree(folder / key / "steps", ignore_errors=True)
