"""Do the same with many weights at once, in threads: the most costly first, with the errors that one thread meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from queue import SimpleQueue
from typing import TypeVar

import torch

from svdiff_delta._util.parallel import Task, Threads
from svdiff_delta.errors import DeltaError
from svdiff_delta.format.parameter import Kind

from .cache import BasisCache, BusyError
from .gpu_basis import gpu_workers

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
    threads, ended = torch.get_num_threads(), SimpleQueue[str]()

    def alone(name: str, wait: bool) -> T:
        torch.set_num_threads(1)
        try:
            return work(name, wait)
        finally:
            ended.put(name)

    try:
        with Threads[T](min(workers or threads, len(order))) as pool:
            for wait in (False, True):
                tasks = {name: pool.submit(partial(alone, name, wait)) for name in order}
                order = []
                for _ in tasks:
                    name, failed = ended.get(), False
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
    return map_waiting(costs, lambda name, _: work(name), progress, workers)


def map_waiting(
    costs: Mapping[str, int],
    work: Callable[[str, bool], T],
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, T]:
    """Do as `map_weights` with `work(name, wait)`, which may raise `BusyError` unless it is to wait."""
    found = _attempted(costs, work, progress, workers)
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
    return _attempted(costs, lambda name, _: work(name), progress, workers)


def _attempted(
    costs: Mapping[str, int], work: Callable[[str, bool], T], progress: Progress | None, workers: int | None
) -> dict[str, T | DeltaError]:
    def attempt(name: str, wait: bool) -> T | DeltaError:
        try:
            return work(name, wait)
        except DeltaError as error:
            return error.with_traceback(None)  # whose frames hold the weight

    found = run_costliest_first(costs, attempt, progress, workers)
    return {name: found[name] for name in costs}
