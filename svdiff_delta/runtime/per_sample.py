"""Give each sample of a batch its own δ: gains row by row, and a check that a batch can be shared out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta.errors import InputError


class Batch:
    """The deltas of each sample in a batch, while one model runs.

    A batch is the list of deltas, once or several times over, as diffusers doubles it for classifier-free guidance.

    Args:
        component: the model's name, for errors.
    """

    def __init__(self, component: str) -> None:
        self.component = component
        self.deltas = 0
        self.size: int | None = None

    def check(self, name: str, x: Tensor) -> None:
        """Check that a layer sees the samples that its model got, one by one.

        Raises:
            InputError: it sees another number of them.
        """
        if self.size is None:  # the layer was called without its model
            self._check_size(name, x.shape[0])
        elif x.shape[0] != self.size:
            raise InputError(
                f"{name}: the layer sees {x.shape[0]} rows and the model a batch of {self.size}, "
                "so it cannot be told which row belongs to which delta",
                fix="run the model once for each delta",
            )

    def _check_size(self, where: str, size: int) -> None:
        if size % self.deltas:
            raise InputError(
                f"{where}: a batch of {size} is no multiple of the {self.deltas} samples that per_sample was given",
                fix="give a delta, or None, for every sample",
            )

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Note the batch size, as a hook before the model's forward.

        Raises:
            InputError: it is no multiple of the number of deltas.
        """
        if not self.deltas:
            return
        # Vectors such as timesteps or positions in a cache do not tell it.
        inputs = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 1)
        found = next(inputs, None)
        self.size = None if found is None else found.shape[0]
        if self.size is not None:
            self._check_size(self.component, self.size)

    def end(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:  # noqa: ARG002
        """Forget the batch size, as a hook after the model's forward."""
        self.size = None


def multiply(x: Tensor, gain: Tensor, tail: tuple[int, ...]) -> Tensor:
    """Return x with its channels multiplied, as one broadcast multiplication.

    Args:
        x: (B, …, *tail) with ones in `tail` for dimensions of any size, such as those of a picture.
        gain: (R,) for all samples, or (S, R) for the samples 0 … S−1, S … 2S−1, and so on, of x; R = prod(tail).
        tail: the last dimensions as the gain sees them.
    """
    if gain.ndim == 1:
        return x * (gain if len(tail) == 1 else gain.reshape(tail))
    count = gain.shape[0]
    rows = gain.reshape(count, *[1] * (x.ndim - 1 - len(tail)), *tail)
    return torch.flatten(x.unflatten(0, (-1, count)) * rows, 0, 1)
