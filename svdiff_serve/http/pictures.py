"""Keep pictures for a while under addresses that nobody can guess, up to a number of bytes."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

KEPT_FOR: Final = 3600.0
"""Seconds for which an address holds, as OpenAI's."""

MOST: Final = 256 << 20
"""Bytes of all pictures that are kept; the oldest go first."""


class PictureStore:
    """Pictures by a token.

    Args:
        most: bytes of all of them.
        seconds: how long each is kept.
        clock: seconds that only rise.
    """

    def __init__(
        self, most: int = MOST, seconds: float = KEPT_FOR, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, picture: bytes) -> str:
        """Keep a picture, and return its token."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._kept[token] = (self._clock() + self._seconds, picture)
            self._bytes += len(picture)
            self._trim()
        return token

    def get(self, token: str) -> bytes | None:
        """Return a picture; None if it is not there any more."""
        with self._lock:
            self._trim()
            found = self._kept.get(token)
        return None if found is None else found[1]

    def _trim(self) -> None:
        now = self._clock()
        while self._kept:
            token, (until, picture) = next(iter(self._kept.items()))
            if until > now and self._bytes <= self._most:
                return
            del self._kept[token]
            self._bytes -= len(picture)
