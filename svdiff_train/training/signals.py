"""Ending a run in good order: Ctrl-C, SIGTERM and SIGHUP are remembered, and the run stops after its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from svdiff_delta._util.interrupted import interrupt

SIGNALS: Final = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those that this system has; SIGHUP comes when the terminal is closed."""


@contextmanager
def remember_signals() -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the signal that came, if any; a second one has its usual effect at once."""
    came: int | None = None

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        del frame
        if came is None:
            came = number
        elif number == signal.SIGINT:
            interrupt(KeyboardInterrupt())
        else:
            interrupt(SystemExit(128 + number))

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # signals reach the main thread only
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # What `nohup` lets be ignored stays so.
    heard = [number for number in SIGNALS if number == signal.SIGINT or before[number] is not signal.SIG_IGN]
    previous = {number: signal.signal(number, remember) for number in heard}
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
