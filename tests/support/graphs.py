"""Stand-ins for a card that captures work as graphs, and fails as a card would.

One does the work at every replay. The other has only the operations of when it was captured, on the memory of then, as
a card has: what Python would do in between is not done, and what would wait for a value is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svdiff_train.graphs.cuda_capture import Graph

REFUSED: Final = "CUDA error: operation not permitted when stream is capturing\nSearch for `cudaErrorStreamCapture…`"


READS: Final = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"})
"""Operations that hand values, or a size that depends on them, to the host."""


class Replayed:
    """A graph that does its work again, and writes the result where the first one was."""

    def __init__(self, work: Callable[[], Tensor], result: Tensor | None) -> None:
        self.work, self.result, self.times = work, result, 0

    def replay(self) -> None:
        self.times += 1
        assert self.result is not None
        self.result.copy_(self.work())


class Breaks(TorchDispatchMode):
    """Do so many operations, and refuse the next one."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.left:
            raise RuntimeError(REFUSED)
        self.left -= 1
        return func(*args, **(kwargs or {}))


class Captures:
    """Stands in for a card.

    Args:
        breaks_at: after how many operations captures fail; None if they do not.
        fails_with: what they fail with at once; None if they do not.

    Attributes:
        graphs: what was captured.
        warmed: how often work was done to warm up.
        tried: how many captures were begun.
    """

    def __init__(self, *, breaks_at: int | None = None, fails_with: Callable[[], BaseException] | None = None) -> None:
        self.graphs: list[Replayed] = []
        self.fails_with = fails_with
        self.warmed = self.tried = 0
        self.breaks_at = breaks_at
        self.last: Tensor | None = None

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed += 1
        self.last = work()
        return self.last

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        self.tried += 1
        if self.fails_with is not None:
            raise self.fails_with()
        if self.breaks_at is not None:
            with Breaks(self.breaks_at):  # worse than a card, which has done nothing by then
                work()
            raise RuntimeError(REFUSED)
        assert self.last is not None  # as large as the result will be
        result = torch.full_like(self.last, torch.nan)
        self.graphs.append(Replayed(work, result))
        return self.graphs[-1], result


class Operations(TorchDispatchMode):
    """Records operations, with what they took and what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS or _is_masked(func, args):
            raise RuntimeError(REFUSED)
        found = func(*args, **(kwargs or {}))
        taken = {_memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        given = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        new = [each for each in given if _memory(each) not in taken]
        if new or func._schema.is_mutable or not given:
            self.done.append((func, args, kwargs or {}, new))
        return found  # a view is where it was


def _is_masked(func: Any, args: Any) -> bool:
    """Tell whether an operation picks by a mask: how many there are, a card must tell the host."""
    indices = args[1] if func.overloadpacket.__name__ == "index" else ()
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in indices)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Frozen:
    """A graph of operations on the memory on which they were recorded."""

    def __init__(self, operations: Operations) -> None:
        self.done, self.times = operations.done, 0

    @torch.no_grad()
    def replay(self) -> None:
        self.times += 1
        for func, args, options, given in self.done:
            found = [each for each in tree_leaves(func(*args, **options)) if isinstance(each, Tensor)]
            for place, value in zip(given, found, strict=False):
                place.copy_(value)


class FrozenCaptures(Captures):
    """Stands in for a card that repeats operations and nothing else.

    Args:
        held: what the work changes, which a capture leaves as it is.
    """

    def __init__(self, held: Callable[[], Sequence[Tensor]] = list) -> None:
        super().__init__()
        self.held = held

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        self.tried += 1
        before = [(each, each.detach().clone()) for each in self.held()]
        with Operations() as operations:
            result = work()
        with torch.no_grad():
            for each, value in before:
                each.copy_(value)
        graph = Frozen(operations)
        self.graphs.append(graph)  # type: ignore[arg-type]
        return graph, result.detach()
