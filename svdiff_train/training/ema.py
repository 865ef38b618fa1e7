"""Keep the running mean of what is trained: it lags behind the last steps, and has less of their noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average m of what is trained, as `EMAModel` of diffusers 0.42 takes it.

    After step n, from 1: m ← m + (1 − d_n) (θ − m), d_1 = 0, d_n = min(decay, n / (9 + n)).

    Args:
        parameters: θ, by name.
        decay: the largest d.

    Attributes:
        means: m, by the names of the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.means: dict[str, Tensor] = {name: each.detach().clone() for name, each in self._parameters.items()}

    @torch.no_grad()
    def step(self, number: int, bad: Tensor) -> None:
        """Take in what a step has left; nothing is read from the device.

        Args:
            number: of the step, from 1.
            bad: whether a step has gone wrong, (): from then on the mean stays, as what is trained does.
        """
        part = torch.where(bad, 0.0, 1.0 - rate(number, self._decay))
        for name, mean in self.means.items():
            mean += part * (self._parameters[name] - mean)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the mean be in the place of what is trained."""
        kept = {name: each.detach().clone() for name, each in self._parameters.items()}
        self._fill(self.means)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)


def rate(number: int, decay: float) -> float:
    """Return what the mean keeps of itself at a step, from 1: little at first, when there is little in it."""
    return min(decay, number / (9.0 + number)) if number > 1 else 0.0
