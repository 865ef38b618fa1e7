"""Processes of their own, and what a process has taken: memory from /proc, seconds by who spent them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def child(code: str, *arguments: object) -> Any:
    """Run Python code, which can import `common`, in a new process; return what it printed, as JSON."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process's pages: VmRSS all that are resident, RssAnon its own, VmHWM the most there were."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def restart_peak() -> None:
    """Let VmHWM count from here."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def watched(*keys: str) -> Iterator[dict[str, int]]:
    """Give the most of each key that was seen in fiftieths of a second, for those that the kernel keeps no peak of."""
    most, over = dict.fromkeys(keys, 0), threading.Event()

    def watch() -> None:
        while True:
            for key in keys:
                most[key] = max(most[key], resident(key))
            if over.wait(0.02):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


@dataclass
class Spent:
    """Seconds by the clock, of the processor in the program, and in the kernel for it."""

    clock: float = 0.0
    user: float = 0.0
    system: float = 0.0

    def __str__(self) -> str:
        return f"{self.clock:.1f} s, of the processor {self.user:.1f} s and {self.system:.1f} s in the kernel"

    @property
    def processor(self) -> float:
        """Both of the processor's."""
        return self.user + self.system


@contextmanager
def spending(spent: Spent) -> Iterator[None]:
    """Add what the block takes."""
    times, begun = os.times(), time.perf_counter()
    yield
    after = os.times()
    spent.clock += time.perf_counter() - begun
    spent.user += after.user - times.user
    spent.system += after.system - times.system


def spent_by(
    codes: Mapping[str, str], *arguments: object, runs: int, key: Callable[[Spent], float]
) -> dict[str, list[Spent]]:
    """Run each code, which prints what it spent, in new processes; return all runs of each, in the order of key.

    New processes, because memory that one run has given back costs the next one less.
    """
    return {
        name: sorted((Spent(**child(code, *arguments)) for _ in range(runs)), key=key) for name, code in codes.items()
    }
