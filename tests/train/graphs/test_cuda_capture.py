"""Where graphs keep their memory: one pool for those that are there, never one that torch has given up.

No card is needed: what counts the graphs of a pool is a stand-in, and refuses as torch's allocator does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from svdiff_train.graphs.cuda_capture import CudaCapture


class Allocator:
    """Counts the graphs of each pool; one that had some and has none is given up."""

    def __init__(self) -> None:
        self.handles, self.users, self.used = 0, Counter[int](), list[int]()

    def handle(self) -> int:
        self.handles += 1
        return self.handles

    def begin(self, pool: int) -> None:
        if pool in self.users and not self.users[pool]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.users[pool] += 1
        self.used.append(pool)

    def end(self, pool: int) -> None:
        self.users[pool] -= 1


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    found = Allocator()

    class CUDAGraph:
        """A graph that gives its share of a pool back with its end."""

        place: int | None = None

        def pool(self) -> int:
            assert self.place is not None
            return self.place

        def replay(self) -> None:
            return

        def __del__(self) -> None:
            if self.place is not None:
                found.end(self.place)

    @contextmanager
    def graph(made: CUDAGraph, pool: int, stream: object, capture_error_mode: str) -> Iterator[None]:
        del stream, capture_error_mode
        found.begin(pool)
        yield  # one that fails has no pool, as torch says
        made.place = pool

    for name, value in {
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": found.handle,
        "Stream": lambda device: object(),
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


def captured(capture: CudaCapture) -> Any:
    graph, result = capture.capture(lambda: torch.ones(2))
    assert result.tolist() == [1, 1]
    return graph


def test_graphs_that_are_there_at_a_time_have_one_pool(allocator: Allocator) -> None:
    capture = CudaCapture(torch.device("cuda"))
    kept = [captured(capture) for _ in range(3)]
    assert allocator.used == [1, 1, 1]
    del kept[0]  # the first of them may go
    kept.append(captured(capture))
    assert allocator.used == [1, 1, 1, 1]


def test_after_the_last_graph_of_a_pool_the_next_has_another(allocator: Allocator) -> None:
    capture = CudaCapture(torch.device("cuda"))
    for _ in range(3):
        captured(capture)
    assert allocator.used == [1, 2, 3]


def test_a_capture_that_fails_keeps_the_next_from_none(allocator: Allocator) -> None:
    def fails() -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    capture = CudaCapture(torch.device("cuda"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not permitted"):
            capture.capture(fails)
    kept = [captured(capture), captured(capture)]
    assert len(kept) == 2
    assert len(set(allocator.used[-2:])) == 1
