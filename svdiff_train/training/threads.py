"""Set the threads of this process while it trains a base or measures, and how it treats tiny numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Compute with so many threads, and with 0 for numbers below the smallest normal one; undo both at the end.

    Products with such numbers take a hundred times as long, and no training needs them. But the setting is the whole
    thread's: a caller that goes on afterwards, as a test does, must find δ as small as it wrote them.
    """
    before, flushed = torch.get_num_threads(), _flushes()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)


def _flushes() -> bool:
    """Return whether numbers below the smallest normal one are 0 here; torch has no way to ask."""
    return not bool(torch.tensor([2.0**-100]).mul(2.0**-40).item())
