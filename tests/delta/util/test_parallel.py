"""Threads that do tasks: all are done once, errors arrive, and what interrupts never leaves anyone waiting."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from support.interrupts import Interrupt, moments

from svdiff_delta._util import parallel
from svdiff_delta._util.parallel import Threads


class Stopped(BaseException):
    """What interrupts, as Ctrl-C does."""


def test_all_tasks_are_done_once_and_keep_what_they_return() -> None:
    with Threads[int](3) as threads:
        tasks = [threads.submit(partial(pow, number, 2)) for number in range(50)]
        assert [task.result() for task in tasks] == [n * n for n in range(50)]
        again = threads.submit(partial(pow, 2, 3))
        assert again.result() == again.result() == 8


def test_what_a_task_raises_is_raised_by_its_result_each_time() -> None:
    with Threads[float](1) as threads:
        task = threads.submit(lambda: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                task.result()


def test_the_end_forgets_what_no_thread_has_begun_and_waits_for_the_others() -> None:
    begun, done = threading.Event(), []

    def first() -> None:
        begun.set()
        time.sleep(0.1)
        done.append("first")

    def stop() -> None:
        with Threads[None](1) as threads:
            threads.submit(first)
            threads.submit(lambda: done.append("second"))
            begun.wait()
            raise Stopped

    with pytest.raises(Stopped):
        stop()
    assert done == ["first"]


def test_what_a_task_was_done_with_is_not_kept() -> None:
    class Large: ...

    large = Large()
    seen = weakref.ref(large)
    with Threads[str](1) as threads:
        task = threads.submit(partial(repr, large))
        del large
        assert "Large" in task.result()
        threads.submit(lambda: "next").result()
        gc.collect()
        assert seen() is None


def test_what_a_task_returned_goes_with_the_task() -> None:
    """Weights of a bake: those that are written must not wait for the end of the pool."""

    class Large: ...

    with Threads[Large](1) as threads:
        task = threads.submit(Large)
        seen = weakref.ref(task.result())
        assert seen() is not None
        del task
        threads.submit(Large).result()
        gc.collect()
        assert seen() is None


def test_a_task_that_asks_ends_once_an_error_ends_the_threads_and_not_else() -> None:
    begun, ended = threading.Event(), []

    def long(name: str, turns: int) -> None:
        begun.set()
        try:
            for _ in range(turns):
                parallel.check_stopped()
                time.sleep(0.001)
        except parallel.Stopped:
            ended.append(f"{name} stopped")
            raise
        ended.append(name)

    def interrupt() -> None:
        with Threads[None](2) as threads:
            threads.submit(partial(long, "endless", 60_000))
            begun.wait()
            raise Stopped

    with Threads[None](2) as threads:
        threads.submit(partial(long, "short", 20))
        begun.wait()
    begun.clear()
    with pytest.raises(Stopped):
        interrupt()
    assert ended == ["short", "endless stopped"]


def test_what_is_forgotten_is_not_done() -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        go.wait()
        done.append("first")

    with Threads[None](1) as threads:
        threads.submit(first)
        threads.submit(lambda: done.append("second"))
        begun.wait()
        threads.forget()
        go.set()
        threads.submit(lambda: done.append("third")).result()
    assert done == ["first", "third"]


def work() -> int:
    with Threads[int](2) as threads:
        tasks = [threads.submit(partial(pow, number, 2)) for number in range(6)]
        return sum(task.result() for task in tasks)


def test_before_any_bytecode_it_may_be_interrupted() -> None:
    """Only on the main thread, as Python does for signals."""
    with Interrupt(parallel.__file__, threads=False).watching() as count:
        assert work() == 55
    for moment in moments(150, count.count):
        interrupt = Interrupt(parallel.__file__, [moment], Stopped, threads=False)
        with interrupt.watching(), suppress(Stopped):
            assert work() == 55
    assert work() == 55


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_a_signal_at_any_moment_ends_it() -> None:
    begun = time.perf_counter()
    for _ in range(50):
        work()
    usual, rung = (time.perf_counter() - begun) / 50, 0
    for number in range(20_000):
        try:
            with alarm(usual * (0.001 + (number * 0.6180339887) % 1)):
                work()
        except Stopped:
            rung += 1
    assert rung > 2_000
