"""Lines that say how far a long command is, where no terminal shows a bar."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

EVERY: Final = 10.0
"""Seconds between lines."""


class Ticker:
    """Prints a line on standard error every ten seconds while something goes on, from a thread of its own.

    On a terminal it prints nothing: there are bars.

    Args:
        label: what is being done.
        quiet: print nothing.
        every: seconds between lines.
        clock: seconds that have passed.
    """

    def __init__(
        self, label: str, *, quiet: bool = False, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quiet, self.every, self._clock = quiet, every, clock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.stage(label)

    def stage(self, label: str) -> None:
        """Begin another stage, of which nothing is done yet."""
        self.label, self.begun = label, self._clock()
        self._first: tuple[float, int] | None = None
        self._done, self._total, self._note = 0, 0, ""

    def tell(self, done: int, total: int, note: str = "") -> None:
        """Remember that `done` of `total` is done, with a note."""
        self._done, self._total, self._note = done, total, note
        if self._first is None:
            self._first = self._clock(), done

    def line(self) -> str:
        """Return how far it is: "training: 20 %, 12 s so far, 48 s left, loss 0.1"."""
        now = self._clock()
        parts = [f"{now - self.begun:.0f} s so far"]
        if self._total:
            parts.insert(0, f"{100 * self._done / self._total:.0f} %")
        if (left := self._left(now)) is not None:
            parts.append(f"{left:.0f} s left")
        return f"{self.label}: {', '.join([*parts, *filter(None, [self._note])])}"

    def _left(self, now: float) -> float | None:
        """Return the seconds left, at the pace since the first that was told of; None while there is no pace."""
        first, done, total = self._first, self._done, self._total
        if first is None or done <= first[1]:
            return None
        return (now - first[0]) * (total - done) / (done - first[1])

    def __enter__(self) -> Self:
        if not sys.stderr.isatty():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self.every)  # it may be writing to a pipe that nobody reads

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            while not self._ended.wait(self.every):
                if not self.quiet:
                    sys.stderr.write(f"{self.line()}\n")
                    sys.stderr.flush()
