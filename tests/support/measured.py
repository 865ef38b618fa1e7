"""What reading one broken file costs, and what becomes of it: the clock, the memory and the refusals of all fuzzing."""

from __future__ import annotations

import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from svdiff_delta.errors import LONGEST, DeltaError

SECONDS, TIMES, MEMORY = 2.0, 10, 200_000_000
HANG = 20
"""Seconds after which a file that is still being read is given up."""

Files = dict[str, bytes]
"""What a case consists of, by name; the first is the one that is read."""


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        count: how many `make fuzz` reads.
        short: how many `make test` reads.
        make: returns the mutation's name and the files.
        read: reads the first of the files in a folder; raises a DeltaError, or returns what it is.
    """

    count: int
    short: int
    make: Callable[[random.Random], tuple[str, Files]]
    read: Callable[[Path], object]


def outcome_of(target: Target, folder: Path, files: Files) -> str:
    """Write a case and read it; return "read", or the class of the refusal.

    Raises:
        AssertionError: it took too long or too much, or its refusal is no line.
        Exception: whatever else went wrong.
    """
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    first = folder / next(iter(files))
    before, begun = _forget_peak(), time.process_time()
    signal.alarm(HANG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            target.read(first)
            kind = "read"
        except DeltaError as error:
            kind = _kind_of(error)
    signal.alarm(0)
    seconds, taken = time.process_time() - begun, _peak() - before
    assert seconds <= SECONDS, f"took {seconds:.2f} s"
    size = sum(map(len, files.values()))
    assert taken <= max(MEMORY, TIMES * size), f"took {taken:,} bytes for {size:,}"
    return kind


def _kind_of(refusal: DeltaError) -> str:
    assert refusal.message, "a refusal without a message"
    assert str(refusal).isprintable(), "a refusal that fills more than a line"
    assert len(str(refusal)) <= 2 * LONGEST, "a refusal that fills more than a line"
    return type(refusal).__name__


def _forget_peak() -> int:
    """Begin to measure the peak anew; return the bytes that are in memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def fuzz_target(name: str, target: Target, numbers: range, seed: int, keep: Path | None = None) -> Counter[str]:
    """Read cases of these numbers; return how many came out how.

    Raises:
        AssertionError: one of them failed; its name and number are in the message, and its files in `keep`.
    """

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still reading after {HANG} s")

    signal.signal(signal.SIGALRM, give_up)
    kinds: Counter[str] = Counter()
    for number in numbers:
        with TemporaryDirectory(prefix="fuzz-") as place:
            mutation, files = target.make(random.Random(f"{name} {seed} {number}"))
            try:
                kinds[outcome_of(target, Path(place), files)] += 1
            except Exception as error:
                signal.alarm(0)
                _keep(keep, f"{name}-{seed}-{number}", files)
                raise AssertionError(f"{name} {number} of seed {seed} ({mutation}): {error!r}") from error
    return kinds


def _keep(folder: Path | None, label: str, files: Files) -> None:
    for name, content in files.items() if folder is not None else ():
        place = folder / label / name  # type: ignore[operator]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
