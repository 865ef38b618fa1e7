"""An error that an interruption caused: the interruption is what counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptions_kept() -> Iterator[None]:
    """Raise the interruption in place of an error that was raised in its course.

    A signal may arrive within a `with` of another library, whose end then fails: torch's device contexts do so, with
    "trying to pop from empty mode stack". Whoever takes any error of foreign code for a fault of a file calls it
    within this, or a Ctrl-C reads as a broken file. The error stays as the interruption's `__cause__`.

    Raises:
        KeyboardInterrupt: it came first; SystemExit and all that is no Exception likewise.
    """
    handled = sys.exception()  # one that the caller is done with is no reason for what fails now
    try:
        yield
    except Exception as error:
        behind = error.__context__
        while behind is not None and behind is not handled and isinstance(behind, Exception):
            behind = behind.__context__
        if behind is None or behind is handled:
            raise
        raise behind from error
