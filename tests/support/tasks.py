"""What processes are asked to do in tests of those that share out tasks."""

from __future__ import annotations

import os
import time
from pathlib import Path


def pid(number: int) -> tuple[int, int]:
    """Return a number and the process that got it."""
    return number, os.getpid()


def meet(folder: Path, name: str, others: int) -> int:
    """Wait until so many processes are in this function at the same time; return the process."""
    (folder / name).write_text("")
    for _ in range(600):
        if len(list(folder.iterdir())) >= others:
            return os.getpid()
        time.sleep(0.05)
    raise TimeoutError


def die(number: int) -> int:
    """Return the number; end the process at once where it is 1."""
    if number == 1:
        os._exit(1)
    return number


def leave_half(path: Path | None) -> None:
    """Write a file, and remove it when told to stop; without a path do nothing."""
    if path is None:
        return
    try:  # the signal may come as soon as the file is there
        path.write_text("half")
        time.sleep(60)
    finally:
        path.unlink(missing_ok=True)
