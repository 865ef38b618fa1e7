"""An error that an interruption caused: the interruption is what counts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_latest: BaseException | None = None
"""What `interrupt` raised last."""


def interrupt(interruption: BaseException) -> NoReturn:
    """Raise an interruption from a signal's handler, and remember it.

    Compiled code may drop what a handler raises and report an error of its own, without the interruption behind it:
    safetensors 0.8 lets torch 2.13 read a storage's shape, which calls Python, and says "could not determine the
    shape"; diffusers then says that a file cannot be loaded. `interruptions_kept` knows better.

    Args:
        interruption: `KeyboardInterrupt`, or a `SystemExit`.
    """
    global _latest
    _latest = interruption
    raise interruption


@contextmanager
def interruptions_kept() -> Iterator[None]:
    """Raise the interruption in place of an error that was raised in its course.

    A signal may arrive within a `with` of another library, whose end then fails: torch's device contexts do so, with
    "trying to pop from empty mode stack". Whoever takes any error of foreign code for a fault of a file calls it
    within this, or a Ctrl-C reads as a broken file. The error stays as the interruption's `__cause__`. In the main
    thread this finds interruptions of `interrupt` even where nothing leads back to them.

    Raises:
        KeyboardInterrupt: it came first; SystemExit and all that is no Exception likewise.
    """
    handled = sys.exception()  # one that the caller is done with is no reason for what fails now
    before = _latest
    try:
        yield
    except Exception as error:
        behind = error.__context__
        while behind is not None and behind is not handled and isinstance(behind, Exception):
            behind = behind.__context__
        if behind is not None and behind is not handled:
            raise behind from error
        if _latest is None or _latest is before or threading.current_thread() is not threading.main_thread():
            raise
        raise _latest from error
