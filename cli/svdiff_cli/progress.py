"""Progress on standard error: bars on a terminal for what takes longer than a second, else lines ten seconds apart."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from svdiff_delta._util.ticker import Ticker

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 1.0  # seconds

RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where `torchrun` and the launchers of MPI say which process this is."""


def first_process() -> bool:
    """Tell whether this is the process that speaks: of those that a launcher started, the first."""
    return next((os.environ[name] for name in RANK if name in os.environ), "0") == "0"


def ticker_of(context: click.Context | None) -> Ticker | None:
    """Return what prints lines for the command that runs; None outside of one."""
    found = None if context is None else context.find_root().obj
    return found if isinstance(found, Ticker) else None


def hush(context: click.Context, parameter: click.Parameter, value: bool) -> bool:  # noqa: ARG001
    """Let no lines be printed if an option says so: the callback of --quiet and --json."""
    ticker = ticker_of(context)
    if value and ticker is not None:
        ticker.quiet = True
    return value


class Bar:
    """A progress bar that appears after a second of work, with an estimate of the time left.

    Where there is no terminal, the lines that the command prints say the same.

    Args:
        label: what is being done.
        quiet: never show it.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self.label, self.hidden = label, quiet or not sys.stderr.isatty()
        self.begun = time.monotonic()
        self.ticker = ticker_of(click.get_current_context(silent=True))
        self.before = label if self.ticker is None else self.ticker.label
        if self.ticker is not None:
            self.ticker.stage(label)
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ticker is not None:
            self.ticker.stage(self.before)
        if self.progress is not None:
            self.progress.stop()

    def stage(self, label: str) -> None:
        """Let another stage of the work begin, of which nothing is known yet."""
        self.label = label
        if self.ticker is not None:
            self.ticker.stage(label)
        if self.progress is not None and self.task is not None:
            self.progress.reset(self.task, description=label)

    def __call__(self, done: int, total: int, note: str = "", label: str | None = None) -> None:
        """Show that `done` of `total` is done; another `label` begins another stage of the work."""
        if label is not None and label != self.label:
            self.stage(label)
        if self.ticker is not None:
            self.ticker.tell(done, total, note)
        if self.hidden or (self.progress is None and time.monotonic() - self.begun < PATIENCE):
            return
        if self.progress is None or self.task is None:
            self._show()
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=total, note=note)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task(self.label, total=None, note="")
        self.progress.start()
