"""Run forwards of one model as CUDA graphs, one for each kind of inputs; as they are where that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from svdiff_delta.runtime.forward_state import ForwardState, why_not_repeatable

from .cuda_capture import Capture
from .static_work import StaticWork

MOST: Final = 8
"""How many graphs of a model there are at most: each keeps the activations of its shape."""

PLAIN: Final = (bool, int, float, str, type(None))
"""Inputs that are part of what is captured; of each value there is a graph."""


class GraphedModel:
    """A model whose forwards are graphs while a block runs.

    Args:
        model: the model.
        device: where it is.
        capture: how work is captured.
        tell: is told why forwards have no graph, as often as that is met.
    """

    def __init__(self, model: nn.Module, device: torch.device, capture: Capture, tell: Callable[[str], None]) -> None:
        self._model, self._device, self._capture, self._tell = model, device, capture, tell
        self._own: Callable[..., Any] = model._call_impl
        self._state: ForwardState | None = None
        self._path: Hashable = None
        self._works: dict[Hashable, _Forward] = {}
        self._refused = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let calls of the model be graphs while the block runs, in which nothing but its inputs may change."""
        why = why_not_repeatable(self._model)
        if why is not None:
            self._tell(why)
            yield
            return
        self._look()
        self._model._compiled_call_impl = self._call  # what torch calls in place of forward and its hooks
        try:
            yield
        finally:
            self._model._compiled_call_impl = None

    def forget(self) -> None:
        """Let go of all graphs, and of the memory that they keep."""
        for work in self._works.values():
            work.forget()
        self._works = {}

    def _look(self) -> None:
        """Let go of all graphs if what they read and write is not there any more."""
        state = ForwardState(self._model)
        if self._state is None or not state.has_memory_of(self._state):
            self.forget()
        self._state, self._path = state, state.path

    def _call(self, *args: Any, **options: Any) -> Any:
        given, form = tree_flatten((args, options))
        work = self._work_for(given, form) if self._is_plain() else None
        if work is None:
            return self._own(*args, **options)
        try:
            result = work.run(given)
        except OtherOutputError as error:
            self._refused = str(error)
            self._tell(self._refused)
            return self._own(*args, **options)
        if work.why is not None:
            self._tell(work.why)
        return result

    def _is_plain(self) -> bool:
        """Tell whether operations are as they are when pictures are painted: without gradients, in their own dtypes."""
        return not (
            self._refused
            or torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled(self._device.type)
        )

    def _work_for(self, given: Sequence[Any], form: TreeSpec) -> _Forward | None:
        """Return what does forwards of such inputs; None if there are too many kinds of them."""
        odd = [each for each in given if not isinstance(each, (Tensor, *PLAIN))]
        if odd:
            self._tell(f"the denoiser is given a {type(odd[0]).__name__}")
            return None
        kind: Hashable = (self._path, str(form), tuple(map(_kind, given)))
        if kind not in self._works:
            if len(self._works) == MOST:
                self._tell(f"inputs have more than {MOST} shapes or values; those after the first {MOST} have none")
                return None
            self._works[kind] = _Forward(self._own, given, form, self._device, self._capture)
        return self._works[kind]


class OtherOutputError(Exception):
    """The model gives something else than tensors of one dtype."""


class _Forward:
    """Forwards of a model on inputs of one kind.

    Args:
        own: calls the model, with its hooks.
        like: inputs, as a flat list.
        form: how they are called.
        device: where it runs.
        capture: how work is captured.
    """

    def __init__(
        self, own: Callable[..., Any], like: Sequence[Any], form: TreeSpec, device: torch.device, capture: Capture
    ) -> None:
        self._own, self._form = own, form
        self._fixed = [None if isinstance(each, Tensor) else each for each in like]
        self._output: TreeSpec | None = None
        self._shapes: list[torch.Size] = []
        # Numbers that schedulers leave on the CPU are brought to the device: a graph would not read them there again.
        there = {name: value.to(device) for name, value in _tensors(like).items()}
        self._work = StaticWork(self._forward, there, held=list, clean=lambda: None, capture=capture)

    @property
    def why(self) -> str | None:
        """Why it runs without a graph; None if there is no reason."""
        return None if self._work.why is None else f"capturing one failed ({self._work.why})"

    @property
    def captured(self) -> bool:
        """Whether the next run replays a graph."""
        return self._work.captured

    def forget(self) -> None:
        """Let go of the graph."""
        self._work.forget()

    def run(self, given: Sequence[Any]) -> Any:
        """Return what the model gives."""
        joined = self._work.run(_tensors(given))
        parts = [joined] if len(self._shapes) == 1 else joined.split([shape.numel() for shape in self._shapes])
        found = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return tree_unflatten(found, cast("TreeSpec", self._output))

    def _forward(self, buffers: Mapping[str, Tensor]) -> Tensor:
        inputs = [buffers.get(str(index), each) for index, each in enumerate(self._fixed)]
        args, options = tree_unflatten(inputs, self._form)
        found, self._output = tree_flatten(self._own(*args, **options))
        self._shapes = [each.shape for each in found if isinstance(each, Tensor)]
        if len(self._shapes) < max(1, len(found)) or len({each.dtype for each in found}) > 1:
            raise OtherOutputError("the denoiser gives something else than tensors of one dtype")
        only: Tensor = found[0]
        return only if len(found) == 1 else torch.cat([each.flatten() for each in found])


def _tensors(given: Sequence[Any]) -> dict[str, Tensor]:
    """Return the tensors among inputs, by their places."""
    return {str(index): each for index, each in enumerate(given) if isinstance(each, Tensor)}


def _kind(value: Any) -> Hashable:
    """Return what tells inputs apart that need graphs of their own."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.stride() if value.ndim else ()
    return type(value), value
