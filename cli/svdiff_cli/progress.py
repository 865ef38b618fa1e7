"""Progress bars: on standard error, only on a terminal, only for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 1.0  # seconds


class Bar:
    """A progress bar that appears after a second of work, with an estimate of the time left.

    Args:
        label: what is being done.
        quiet: never show it.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self.label, self.hidden = label, quiet or not sys.stderr.isatty()
        self.begun = time.monotonic()
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, done: int, total: int, note: str = "", label: str | None = None) -> None:
        """Show that `done` of `total` is done; another `label` begins another stage of the work."""
        if label is not None and label != self.label:
            self.label = label
            if self.progress is not None and self.task is not None:
                self.progress.reset(self.task, description=label)
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
