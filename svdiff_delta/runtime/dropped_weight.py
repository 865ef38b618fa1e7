"""Replace a weight by a placeholder without memory while its factors stand for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of

DROPPED: Final = "svdiff_dropped"
"""The attribute of a layer that says that its weight is not in memory."""


class Dropped:
    """A weight that is not in memory: one NaN seen as many, so that whoever reads past the shift notices at once.

    The model's state dict shows it as it was, since loaders of LoRA, offloading and saving go by that.

    Args:
        module: the layer.
        read: reads the weight as it was stored, on any device.
        cast: makes of that what it was on the live model.
    """

    def __init__(
        self, module: nn.Module, read: Callable[[], Tensor], cast: Callable[[Tensor], Tensor] = lambda weight: weight
    ) -> None:
        self.module, self._read, self._cast = module, read, cast
        self._shape = self.weight.shape
        self._original: Tensor | None = None
        self._hook: Any = None

    @property
    def weight(self) -> nn.Parameter:
        """The layer's parameter; moves may put another one in its place."""
        return weight_of(self.module)

    @property
    def filled(self) -> bool:
        """True if the weight is in memory."""
        return DROPPED not in self.module.__dict__

    def drop(self) -> None:
        """Let go of the weight; `fill` brings it back wherever this ended."""
        read, cast = self._read, self._cast

        def show(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:  # noqa: ARG001
            if DROPPED in module.__dict__:
                weight = weight_of(module)
                device = weight.device if weight.device.type != "meta" else None
                state[f"{prefix}weight"] = cast(read()).to(device, weight.dtype)

        self.module.__dict__[DROPPED] = True
        self._hook = self.module.register_state_dict_post_hook(show)
        self.weight.data = torch.full((), torch.nan, dtype=self.weight.dtype, device=self.weight.device)
        self.expand()

    def shrink(self) -> None:
        """Make it one number, which can be moved; torch would move as many as there seem to be."""
        if not self.filled:
            self.weight.data = self.weight.data[(0,) * len(self._shape)]

    def expand(self) -> None:
        """Let the number be seen as many."""
        if not self.filled:
            self.weight.data = self.weight.data.expand(self._shape)

    def read(self) -> None:
        """Read the weight, for `fill`.

        Raises:
            AttachError: it is not there any more.
        """
        if not self.filled:
            self._original = self._read()

    def fill(self) -> None:
        """Put the weight back; one that was offloaded since is brought in by whoever offloads it."""
        if not self.filled:
            if self.weight.device.type != "meta":
                original = self._read() if self._original is None else self._original
                self.weight.data = self._cast(original).to(self.weight.device, self.weight.dtype)
            self.module.__dict__.pop(DROPPED, None)
        self._original = None
        if self._hook is not None:
            self._hook.remove()
