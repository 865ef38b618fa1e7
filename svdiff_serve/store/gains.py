"""Hold the gains of mixes that were used last, up to a number of bytes, and compute each once for all who wait."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that takes bytes on a device."""

    @property
    def nbytes(self) -> int:
        """How many."""


T = TypeVar("T", bound=Sized)


class GainCache(Generic[T]):
    """What was used last, by what it is made of; threads may share it.

    What is too large to be kept beside others is given to whoever asked, and not kept.

    Args:
        limit: bytes that are kept; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._coming: dict[Hashable, Future[T]] = {}
        self.nbytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what a key stands for; made now unless it is there, or another thread makes it.

        Args:
            key: what it is made of, such as contents and weights.
            make: makes it; what it raises is raised for all who wait, and not kept.
        """
        with self._lock:
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            self.misses += 1
            waiting = self._coming.get(key)
            if waiting is None:
                mine: Future[T] = Future()
                self._coming[key] = mine
        if waiting is not None:
            return waiting.result()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._keep(key, made)
        mine.set_result(made)
        return made

    def _keep(self, key: Hashable, made: T) -> None:
        if made.nbytes > self._limit:
            return
        self._kept[key] = made
        self.nbytes += made.nbytes
        while self.nbytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= dropped.nbytes
