"""Do the same with many weights at once, in threads: the most costly first, with the errors that one thread meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import torch

from svdiff_delta._util.parallel import Task, Threads
from svdiff_delta.errors import DeltaError
from svdiff_delta.format.parameter import Kind

from .cache_entry import BusyError
from .gpu_basis import gpu_workers

if TYPE_CHECKING:
    from .cache import BasisCache

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all."""


def cost(shape: Sequence[int], kind: Kind, axis: int) -> int:
    """Return about how many multiplications a basis takes: K²L for products, and ten K³ for eigenvectors."""
    rows, count = shape[axis] if shape else 1, prod(shape)
    if kind == "elementwise":
        return count
    short = min(rows, count // max(1, rows))
    return short * count + 10 * short**3


def workers_for(cache: BasisCache) -> int | None:
    """Return how many bases to compute at once: one on each core, on a GPU as many as its memory has room for."""
    return None if cache.device.type == "cpu" else gpu_workers(cache.device)


def run_costliest_first(
    costs: Mapping[str, int],
    work: Callable[[str, bool], T],
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, T]:
    """Return the results of `work(name, wait)` by sorted name, done in threads, the most costly first.

    Where it raises `BusyError` it is done again in the end, with `wait` true. An error stops all; of several it is that
    of the most costly, as one thread would meet it. There are as many workers as torch has threads, unless their number
    is given; no more are in memory at a time.
    """
    order = sorted(costs, key=lambda name: (-costs[name], name))
    done, total, found = 0, sum(costs.values()), {}
    threads = torch.get_num_threads()

    def alone(name: str, wait: bool, ended: _Ended) -> T:
        tell = True
        torch.set_num_threads(1)
        try:
            result = work(name, wait)
            tell = False
        finally:
            ended.add(name, tell=tell)
        return result

    try:
        with Threads[T](min(workers or threads, len(order))) as pool:
            for wait in (False, True):
                ended = _Ended(len(order), each=progress is not None)
                tasks = {name: pool.submit(partial(alone, name, wait, ended)) for name in order}
                order = []
                for name in ended:
                    failed = False
                    try:
                        found[name] = tasks[name].result()
                    except BusyError:
                        order.append(name)
                        continue
                    except Exception:  # noqa: BLE001 - raised again
                        failed = True
                    if failed:
                        pool.forget()
                        _raise_first(tasks.values())
                    done += costs[name]
                    if progress is not None:
                        progress(done, total)
    finally:
        torch.set_num_threads(threads)  # for threads that torch has not met yet
    return dict(sorted(found.items()))


class _Ended:
    """The names of tasks as they end, for one who waits for them all.

    Each time that he wakes takes a core from those who work: he is woken for what failed and for the last, and for each
    only where somebody wants to know how far it is.

    Args:
        count: how many tasks there are.
        each: whether to wake him for each.
    """

    def __init__(self, count: int, *, each: bool) -> None:
        self._count, self._each = count, each
        self._names: list[str] = []
        self._told = SimpleQueue[None]()

    def add(self, name: str, *, tell: bool) -> None:
        """Add one, in the thread that did it."""
        self._names.append(name)
        if tell or self._each or len(self._names) >= self._count:
            self._told.put(None)

    def __iter__(self) -> Iterator[str]:
        """Yield all, each not before it has ended."""
        for index in range(self._count):
            while index >= len(self._names):
                self._told.get()
            yield self._names[index]


def _raise_first(tasks: Iterable[Task[T]]) -> None:
    """Raise the error of the first of tasks that fails; those before it were begun before it, so they end."""
    for task in tasks:
        with suppress(BusyError):
            task.result()


def map_weights(
    costs: Mapping[str, int], work: Callable[[str], T], progress: Progress | None = None, workers: int | None = None
) -> dict[str, T]:
    """Return the results of `work(name)` by name in the order of `costs`, done in threads, the most costly first.

    Raises:
        DeltaError: as `work`; of several the first in the order of `costs`.
    """
    return without_errors(try_weights(costs, work, progress, workers))


def without_errors(found: Mapping[str, T | DeltaError]) -> dict[str, T]:
    """Return results by name, if none of them is an error.

    Raises:
        DeltaError: the first one that is.
    """
    results: dict[str, T] = {}
    for name, result in found.items():
        if isinstance(result, DeltaError):
            raise result
        results[name] = result
    return results


def try_weights(
    costs: Mapping[str, int], work: Callable[[str], T], progress: Progress | None = None, workers: int | None = None
) -> dict[str, T | DeltaError]:
    """Do as `map_weights`, but return each `DeltaError` in place of its result."""
    found = run_costliest_first(costs, attempting(lambda name, _: work(name)), progress, workers)
    return {name: found[name] for name in costs}


def attempting(work: Callable[[str, bool], T]) -> Callable[[str, bool], T | DeltaError]:
    """Return the same work, whose `DeltaError` is its result."""

    def attempt(name: str, wait: bool) -> T | DeltaError:
        try:
            return work(name, wait)
        except DeltaError as error:
            return error.with_traceback(None)  # whose frames hold the weight

    return attempt
