"""Processes that share out tasks. One that dies takes only its own task with it."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

PATIENCE: Final = 20.0
"""Seconds that a process has to clean up after it was told to stop."""


def run_tasks(
    function: Callable[..., T], tasks: Iterable[tuple[Any, ...]], jobs: int, begun: Callable[[int], None]
) -> Generator[tuple[int, T | None]]:
    """Yield the index and `function(*task)` of every task as it is done; None where the process died of it.

    The processes are spawned, so that nothing of this one is in them. When the iterator is closed, or interrupted, they
    are told to stop, and have some seconds to remove what they left half done.

    Args:
        function: of a module, since the processes import it.
        tasks: arguments that can be pickled; each is asked for when a process is free.
        jobs: how many processes.
        begun: called with the index of each task before it is sent.
    """
    context, left = multiprocessing.get_context("spawn"), iter(enumerate(tasks))
    workers: list[_Worker[T]] = []

    def begin(worker: _Worker[T]) -> None:
        index, task = next(left, (None, ()))
        if index is not None:
            begun(index)
            worker.begin(index, task)

    try:
        for _ in range(jobs):
            workers.append(_Worker(context, function))
            begin(workers[-1])
        while busy := {worker.pipe: worker for worker in workers if worker.index is not None}:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # only pipes are waited for
                index, (result, alive) = worker.index, worker.end()
                if not alive:
                    workers.remove(worker)
                    worker = _Worker(context, function)
                    workers.append(worker)
                begin(worker)
                if index is not None:
                    yield index, result
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.stop()


class _Worker(Generic[T]):
    """A process, the pipe to it, and the index of the task that it does now."""

    def __init__(self, context: SpawnContext, function: Callable[..., T]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.index: int | None = None

    def begin(self, index: int, task: tuple[Any, ...]) -> None:
        """Send a task."""
        self.index = index
        with suppress(BrokenPipeError):  # it died between two tasks; `end` finds out
            self.pipe.send(task)

    def end(self) -> tuple[T | None, bool]:
        """Return what it sent, and whether it is still alive."""
        self.index = None
        try:
            return self.pipe.recv(), True
        except (EOFError, ConnectionResetError):
            self.process.join()
            return None, False

    def stop(self) -> None:
        """Wait for the process to end; kill it if it does not."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, function: Callable[..., Any]) -> None:
    """Do tasks until the pipe ends. Ctrl-C and SIGHUP are for the parent, which then tells this process to stop."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an exception, so that half-written files are removed
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            pipe.send(function(*pipe.recv()))
