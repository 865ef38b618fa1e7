"""Threads that do tasks, and that Ctrl-C can stop at any moment.

`concurrent.futures` and `queue.Queue` cannot be stopped so. Their conditions are Python code, and a signal that arrives
when a condition has taken its lock, and the `with` that would leave it has not begun, leaves the lock taken for ever:
`ThreadPoolExecutor.shutdown` then waits for a thread that waits for that lock (seen in CPython 3.11). `Thread.start`
waits by such a condition too. So every wait here is one call of `queue.SimpleQueue`, which is C code and is interrupted
as a whole or not at all, and threads are started below the module `threading`.

A thread cannot be interrupted. A task that takes long calls `check_stopped` now and then: it ends there once nobody
waits for its result any more, because the one who did was interrupted or has failed.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import local
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

T = TypeVar("T")
_NOTHING: Final[Any] = object()
_here: Final = local()
"""What holds `threads` in a thread of theirs."""


class Stopped(BaseException):
    """What ends a task whose result nobody waits for any more."""


def check_stopped() -> None:
    """End the task that this thread does if nobody waits for its result any more; in any other thread do nothing.

    Raises:
        Stopped: nobody does.
    """
    threads: Threads[Any] | None = getattr(_here, "threads", None)
    if threads is not None and threads.stopped:
        raise Stopped


class Task(Generic[T]):
    """Something that a thread does.

    Args:
        action: what to do.
    """

    def __init__(self, action: Callable[[], T]) -> None:
        self._action = action
        self._value, self._error = _NOTHING, _NOTHING
        self._done: SimpleQueue[None] = SimpleQueue()

    def run(self) -> None:
        """Do it, and keep what it returns or raises, but not what it was done with."""
        action, self._action = self._action, _NOTHING
        try:
            self._value = action()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error
        self._done.put(None)

    def result(self) -> T:
        """Wait until it is done, and return what it returned.

        Raises:
            BaseException: what it raised.
        """
        while self._value is _NOTHING and self._error is _NOTHING:
            self._done.get()
        if self._error is not _NOTHING:
            raise self._error
        return self._value  # type: ignore[no-any-return]


class Threads(Generic[T]):
    """Threads that do tasks in the order in which they are given; a context manager.

    Its end forgets the tasks that no thread has begun, and waits for the others.

    Args:
        count: how many threads.

    Attributes:
        stopped: whether it ends by an error, so that tasks need not go on (`check_stopped`).
    """

    def __init__(self, count: int) -> None:
        self.stopped = False
        self._running = 0
        self._tasks: SimpleQueue[Task[T] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._count = count

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                _thread.start_new_thread(self._work, ())
                self._running += 1
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped = kind is not None
        self._stop()

    def submit(self, action: Callable[[], T]) -> Task[T]:
        """Return a task that the next free thread does."""
        task = Task(action)
        self._tasks.put(task)
        return task

    def forget(self) -> None:
        """Forget the tasks that no thread has begun."""
        while True:
            try:
                self._tasks.get_nowait()
            except Empty:
                return

    def _work(self) -> None:
        _here.threads = self
        while (task := self._tasks.get()) is not None:
            task.run()
            del task  # a result is kept by whoever asks for it, not by an idle thread
        self._ended.put(None)

    def _stop(self) -> None:
        self.forget()
        for _ in range(self._count):
            self._tasks.put(None)
        for _ in range(self._running):
            self._ended.get()
