"""Limit how many pictures a key may ask for in a minute: a bucket that fills again as time goes by."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import ceil

from svdiff_serve.errors import BusyError, LimitError


class Rates:
    """The pictures that each key may still ask for.

    Args:
        per_minute: how many there are in a minute, and at once; 0 for any number.
        clock: seconds that only rise.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = per_minute / 60, max(1.0, per_minute), clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, key: str, count: int) -> None:
        """Take so many pictures of a key's.

        Raises:
            LimitError: it never has as many.
            BusyError: it has not as many left.
        """
        if not self._rate:
            return
        if count > self._most:
            what = f"n: {count} pictures are more than the {self._most:g} that the key may ask for at once"
            raise LimitError(what, fix="ask for fewer", field="n")
        with self._lock:
            now = self._clock()
            left, when = self._left.get(key, (self._most, now))
            left = min(self._most, left + (now - when) * self._rate)
            if left < count:
                wait = max(1, ceil((count - left) / self._rate))
                raise BusyError(
                    f"the key may ask for {self._rate * 60:g} pictures in a minute, and has", retry_after=wait
                )
            self._left[key] = left - count, now

    def give_back(self, key: str, count: int) -> None:
        """Give a key back what it took for a request that was refused."""
        with self._lock:
            if key in self._left:
                left, when = self._left[key]
                self._left[key] = min(self._most, left + count), when
