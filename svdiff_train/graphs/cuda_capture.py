"""Capture work on a CUDA device as one graph: the only part of it that needs a card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor


class Graph(Protocol):
    """Work that was captured."""

    def replay(self) -> Any:
        """Do it again, on the same memory."""


class Capture(Protocol):
    """How work on a device is captured."""

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work as it is, in the way that capturing it needs first; return what it returns."""

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Capture work without doing it; return the graph, and where its result will be.

        Raises:
            RuntimeError: it cannot be captured, or there is not enough memory.
        """


class CudaCapture:
    """Captures with torch's CUDA graphs.

    All graphs that are there have one pool of memory: no two of them run at once, and what one leaves there is not read
    after another has begun. The device's own random numbers go on from replay to replay, since torch registers their
    generator.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)
        self._there = WeakSet[torch.cuda.CUDAGraph]()

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work on a stream beside the current one, which waits for it."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        current.wait_stream(self._side)
        result.record_stream(current)
        return result

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Capture work on that stream."""
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads (pinning memory, reading pictures) may call what a capture on this one must not.
        with torch.cuda.graph(graph, pool=self._pool(), stream=self._side, capture_error_mode="thread_local"):
            result = work()
        self._there.add(graph)
        return graph, result

    def _pool(self) -> Any:
        """Return the pool of the graphs that are there, a new one if there is none.

        Torch gives a pool up with its last graph, and captures nothing into it from then on ("use_count > 0 INTERNAL
        ASSERT FAILED").
        """
        graph = next(iter(self._there), None)
        return torch.cuda.graph_pool_handle() if graph is None else graph.pool()
