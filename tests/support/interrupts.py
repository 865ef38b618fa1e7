"""Errors at any moment: raised just before chosen bytecodes of some modules, on whatever thread runs them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

Event = tuple[str, str, int]
"""File, function and line."""


class Interrupt:
    """Raises errors just before bytecodes of code below a folder, counted from 1.

    Args:
        folder: a part of the paths of the files that count.
        moments: before which bytecodes; none counts them only.
        error: what is raised.
        threads: whether it is raised on other threads too.
    """

    def __init__(
        self,
        folder: str,
        moments: Sequence[int] = (),
        error: Callable[[], BaseException] = Exception,
        *,
        threads: bool = True,
    ) -> None:
        self.threads = threads
        self.folder, self.moments, self.error = folder, set(moments), error
        self.count = 0
        self.raised: list[Event] = []

    def _begin(self, frame: FrameType, event: str, _: Any) -> Any:
        if self.folder not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count in self.moments:
                self.raised.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno))
                sys.setprofile(self._go_on)
                raise self.error()
        return self._step

    def _go_on(self, frame: FrameType, event: str, _: Any) -> None:
        """Trace again: Python has dropped the tracing function, since it raised."""
        sys.setprofile(None)
        sys.settrace(self._begin)
        above: FrameType | None = frame
        while above is not None:
            above.f_trace = self._begin(above, event, None)
            above = above.f_back

    @contextmanager
    def watching(self) -> Iterator[Interrupt]:
        """Count, and raise, while the block runs."""
        before = sys.gettrace()
        if self.threads:
            threading.settrace(self._begin)
        sys.settrace(self._begin)
        try:
            yield self
        finally:
            sys.setprofile(None)
            sys.settrace(before)
            threading.settrace(before)  # type: ignore[arg-type]


def moments(count: int, total: int, *, offset: int = 0) -> list[int]:
    """So many moments, spread over all bytecodes by the golden ratio."""
    return [1 + int(((index + 1 + offset) * 0.6180339887) % 1 * total) for index in range(count)]
