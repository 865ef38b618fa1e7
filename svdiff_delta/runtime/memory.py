"""Return the memory of dropped weights to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

SLACK: Final = 1 << 28
"""Bytes that may wait before the system gets them back; what is made meanwhile finds room there."""


def give_back() -> None:
    """Give the pages of dropped weights back to the system; glibc keeps up to a tenth of a model otherwise.

    Other C libraries do it by themselves, or have no call for it.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library without a name
        return None


class Trim:
    """A counter that gives memory back while weights are replaced, or half of them would be there twice for a while."""

    def __init__(self) -> None:
        self._waiting = 0

    def dropped(self, size: int) -> None:
        """Say that a weight of so many bytes was replaced; threads may do so at once."""
        self._waiting += size
        if self._waiting > SLACK:
            self._waiting = 0
            give_back()
