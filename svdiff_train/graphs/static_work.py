"""Do the same work on a device again and again from input buffers that stay, as a graph where it can be captured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from .cuda_capture import Capture, Graph

WARM: Final = 3
"""How often work is done as it is before it is captured: libraries choose their kernels, and states come to be."""


class StaticWork:
    """Work on inputs of one set of shapes, which is captured after it was done a few times.

    Every run counts: nothing is done twice, and what a capture that failed has changed is put back.

    Args:
        work: computes a result from the buffers; it must leave what a later run needs in the `held` tensors only.
        like: inputs, whose shapes, dtypes and devices the buffers get.
        held: returns the tensors that the work reads and changes beside the buffers.
        clean: lets go of what the work makes anew in every run, such as gradients.
        capture: how it is captured; None to do it as it is.

    Attributes:
        why: why it is done as it is although it should be captured; None if there is no reason.
    """

    def __init__(
        self,
        work: Callable[[Mapping[str, Tensor]], Tensor],
        like: Mapping[str, Tensor],
        *,
        held: Callable[[], Sequence[Tensor]],
        clean: Callable[[], None],
        capture: Capture | None,
    ) -> None:
        self.buffers = {name: torch.empty_like(value) for name, value in like.items()}
        self.why: str | None = None
        self._doing, self._held, self._clean, self._capture = work, held, clean, capture
        self._done = 0
        self._graph: tuple[Graph, Tensor] | None = None
        self._places: list[int] = []

    @property
    def captured(self) -> bool:
        """Whether the next run replays a graph, if what it works on stays where it is."""
        return self._graph is not None

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Copy inputs into the buffers, do the work, and return its result, which a later run does not change."""
        for name, buffer in self.buffers.items():
            buffer.copy_(inputs[name], non_blocking=True)
        if self._capture is None or self.why is not None:
            return self._work()
        if self._graph is not None and self._places != self._addresses():
            self.forget()
        if self._graph is None and self._done < WARM:
            self._done += 1
            return self._capture.warm(self._work)
        if self._graph is None:
            self._record(self._capture)
        return self._work() if self._graph is None else self._replay(*self._graph)

    def _work(self) -> Tensor:
        return self._doing(self.buffers)

    def _replay(self, graph: Graph, result: Tensor) -> Tensor:
        graph.replay()
        for each in self._held():  # who remembers what was made of them must see that they have changed
            torch.autograd.graph.increment_version(each)
        return result.clone()

    def _record(self, capture: Capture) -> None:
        """Capture the work; if it cannot be, say why and let everything be as it was."""
        before = [(each, each.detach().clone()) for each in self._held()]
        self._clean()
        try:
            self._graph = capture.capture(self._work)
        except RuntimeError as error:
            self.forget()
            self._clean()
            self._put_back(before)
            self.why = " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
        else:
            self._places = self._addresses()

    @torch.no_grad()
    def _put_back(self, before: Sequence[tuple[Tensor, Tensor]]) -> None:
        for each, value in before:
            each.copy_(value)

    def forget(self) -> None:
        """Let go of the graph: what it reads and writes is not there any more, or its memory is wanted."""
        self._graph, self._done = None, 0

    def _addresses(self) -> list[int]:
        return [each.data_ptr() for each in self._held()]
