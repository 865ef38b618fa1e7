"""A second process that computes half of every batch's gradient on the same, shared weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svdiff_train.training.threads import computing


class Shared(Protocol):
    """A task whose batch can be split."""

    def model(self) -> nn.Module:
        """A fresh model."""
        ...

    def part_loss(self, model: nn.Module, step: int, part: int, parts: int) -> Tensor:
        """The mean loss over every `parts`-th row of the step's batch, from row `part`."""
        ...


_STOP = -1
_PATIENCE = 5.0


class Partner:
    """One helper on one core; `ask` starts its half of a step, `join` adds the two gradients up.

    Both processes read the same weights in shared memory; only the caller changes them, between
    `join` and the next `ask`. Two processes of one thread each do more than two threads of one.
    """

    def __init__(self, make: Callable[[], Shared], weights: list[nn.Parameter]) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._go, self._done = context.Semaphore(0), context.Semaphore(0)
        self._step = context.Value("q", 0)
        count = sum(w.numel() for w in weights)
        values, grads = torch.zeros(count).share_memory_(), torch.zeros(count).share_memory_()
        self.grads = _views(grads, weights)
        for weight, view in zip(weights, _views(values, weights), strict=True):
            weight.data = view.copy_(weight.data)
        arguments = (make, values, grads, self._go, self._done, self._step, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self._wait()

    def ask(self, step: int) -> None:
        """Start the helper's half of `step`."""
        self._step.value = step
        self._go.release()

    def join(self, weights: list[nn.Parameter]) -> None:
        """Wait for the helper and make each weight's gradient the mean of both halves."""
        self._wait()
        with torch.no_grad():
            mine = [w.grad for w in weights if w.grad is not None]
            torch._foreach_add_(mine, self.grads)
            torch._foreach_mul_(mine, 0.5)

    def close(self) -> None:
        """Send the helper home."""
        self.ask(_STOP)
        self._process.join(30)

    def _wait(self) -> None:
        while not self._done.acquire(timeout=_PATIENCE):
            if not self._process.is_alive():
                raise RuntimeError("the helper process ended: start the run again, it resumes")


def _views(flat: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """The flat memory cut into tensors of the weights' shapes, filters in channels-last layout."""
    found, start = [], 0
    for weight in weights:
        piece = flat[start : start + weight.numel()]
        start += weight.numel()
        if weight.ndim == 4:
            out, inner, high, wide = weight.shape
            found.append(piece.view(out, high, wide, inner).permute(0, 3, 1, 2))
        else:
            found.append(piece.view(weight.shape))
    return found


def _serve(
    make: Callable[[], Shared],
    values: Tensor,
    grads: Tensor,
    go: Any,
    done: Any,
    step: Any,
    parent: int,
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with computing(threads=1):
        task = make()
        model = task.model()
        weights = [p for p in model.parameters() if p.requires_grad]
        for weight, view in zip(weights, _views(values, weights), strict=True):
            weight.data = view
        sums = _views(grads, weights)
        done.release()
        while os.getppid() == parent:
            if not go.acquire(timeout=_PATIENCE):
                continue
            if step.value == _STOP:
                return
            loss = task.part_loss(model, step.value, 1, 2)
            found = torch.autograd.grad(loss, weights)
            torch._foreach_copy_(sums, list(found))
            done.release()
