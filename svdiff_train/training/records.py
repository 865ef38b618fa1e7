"""Keep what steps gave on the device until a report reads it, and what was good at the last report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor


@dataclass(frozen=True)
class Taken:
    """What one step gave.

    Attributes:
        step: its number, from 1.
        rate: the learning rate of the first group.
        loss: before it.
        length: the length of the gradient, before it was clipped.
    """

    step: int
    rate: float
    loss: float
    length: float


class Records:
    """What the steps since the last report gave, unread."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []
        self._numbers: list[Tensor] = []

    def add(self, step: int, rate: float, numbers: Tensor) -> None:
        """Keep a step's loss and gradient's length (2,), as `Stepper.step` returns them."""
        self._steps.append((step, rate))
        self._numbers.append(numbers)

    def read(self) -> list[Taken]:
        """Return all of them, in order, and keep none; this waits for the device, once."""
        if not self._steps:
            return []
        numbers = torch.stack(self._numbers).tolist()
        found = [Taken(*step, *each) for step, each in zip(self._steps, numbers, strict=True)]
        self._steps, self._numbers = [], []
        return found


def first_bad(taken: Sequence[Taken], *, scaled: bool) -> tuple[int, str] | None:
    """Return the number of the first step that went wrong, and how; None if none did.

    Args:
        taken: the steps.
        scaled: whether the loss is scaled: a gradient that is not finite is no fault then.
    """
    for each in taken:
        if not isfinite(each.loss):
            return each.step, f"the loss is {each.loss}"
        if not scaled and not isfinite(each.length):
            return each.step, f"the length of the gradient is {each.length}"
    return None


class Snapshot:
    """What is trained, with the optimizer's memory of it, as it was after a step.

    Args:
        step: the step's number.
        parameters: what is trained, by name, and running means of it.
        optimizer: of it.
    """

    def __init__(self, step: int, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.step, self._optimizer = step, optimizer
        self._values = {parameter: parameter.detach().clone() for parameter in parameters.values()}
        states = {each: optimizer.state[each] for each in self._values if each in optimizer.state}
        self._states = {each: _cloned(state) for each, state in states.items()}

    def put_back(self) -> None:
        """Let all of it be as it was."""
        with torch.no_grad():
            for parameter, value in self._values.items():
                parameter.copy_(value)
                self._optimizer.state.pop(parameter, None)
            for parameter, state in self._states.items():
                self._optimizer.state[parameter] = _cloned(state)


def _cloned(state: Mapping[str, object]) -> dict[str, object]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
