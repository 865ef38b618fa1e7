"""SIGTERM and SIGHUP as exceptions, so that whatever is half written is removed before the command ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from svdiff_delta._util.interrupted import interrupt

SIGNALLED: Final = 128
"""Shells add the signal's number to it."""

ENDING: Final = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those that this system has."""


class Ended(SystemExit):
    """A signal asked for the end; the exit status is what shells expect of that.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALLED + number)
        self.name: Final = signal.Signals(number).name


@contextmanager
def raised() -> Iterator[None]:
    """Let the first of these signals raise `Ended`, while further ones wait for what it cleans up; Ctrl-C as always.

    A signal that was ignored, as `nohup` has it, stays so. Outside of the main thread no signal arrives.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        interrupt(KeyboardInterrupt())

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        for each in before.keys() & ENDING:
            signal.signal(each, signal.SIG_IGN)
        interrupt(Ended(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
