"""Computing baked weights side by side, and giving them to the writer in the order of the file.

Two weights at a time, each with half of torch's threads, keep the processor busier than one with all of them: reading,
rounding and adding are limited by memory, and threads of one product wait for each other whenever the writer takes one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from svdiff_delta._util.parallel import Task, Threads
from svdiff_delta.svd.workspace import Workspace

from .write_queue import WriteQueue

WORKERS: Final = 2
"""Weights that are computed at a time."""

SPACES: Final = 3
"""Weights that are computed or written at a time, beside a large one: each takes memory for its bytes in the output.

One more than is computed, so that nobody waits for the writer.
"""

LARGE: Final = 1 << 24
"""Numbers of a weight beyond which no second such weight is there at a time: 64 MiB in float32."""


class _Made(NamedTuple):
    """A tensor to come: what gives its bytes, and what frees the memory that these lie in."""

    result: Callable[[], Tensor]
    free: Callable[[], None] | None = None


class Workers:
    """Threads that compute tensors, which are put into a queue in the order in which they are asked for.

    Args:
        queue: writes them.
    """

    def __init__(self, queue: WriteQueue) -> None:
        self._queue, self._limit = queue, torch.get_num_threads()
        count = min(WORKERS, self._limit)
        self._share = self._limit // count
        self._threads: Threads[Tensor] = Threads(count)
        self._free, self._free_large = [Workspace() for _ in range(SPACES)], [Workspace()]
        self._made: deque[_Made] = deque()
        self._lent: deque[tuple[int, Callable[[], None]]] = deque()

    def __enter__(self) -> Self:
        self._threads.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._made:
                self._put()
        finally:
            self._threads.__exit__(kind, error, trace)
            torch.set_num_threads(self._limit)  # for threads that torch has not met yet

    def compute(self, action: Callable[..., Tensor], size: int = 0) -> None:
        """Let a thread compute bytes, in memory that is used again when they are written.

        Args:
            action: called as `action(space=…)`; returns the bytes.
            size: how many numbers the weight has.

        Raises:
            DeltaError, OSError: what was asked for before could not be computed or written.
        """
        free = self._free_large if size > LARGE else self._free
        while not free:
            self._reclaim()
        space = free.pop()
        task: Task[Tensor] = self._threads.submit(partial(self._alone, action, space))
        self._made.append(_Made(task.result, partial(free.append, space)))

    def pass_on(self, action: Callable[[], Tensor]) -> None:
        """Let bytes that cost little be written when it is their turn; errors are those of `compute`."""
        self._made.append(_Made(action))
        while self._made[0].free is None:
            self._put()
            if not self._made:
                return

    def _alone(self, action: Callable[..., Tensor], space: Workspace) -> Tensor:
        torch.set_num_threads(self._share)
        return action(space=space)

    def _put(self) -> None:
        """Give the tensor that was asked for first to the writer, when it is there."""
        made = self._made.popleft()
        number = self._queue.put(made.result().numpy().data)
        if made.free is not None:
            self._lent.append((number, made.free))

    def _reclaim(self) -> None:
        """Take memory back from what is written, or let the first tensor be written."""
        if not self._lent:
            self._put()
            return
        number, free = self._lent.popleft()
        self._queue.wait(number)
        free()
