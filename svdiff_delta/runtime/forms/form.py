"""Say what a form of a shifted layer offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from svdiff_delta.runtime.gain_map import Response

if TYPE_CHECKING:
    from svdiff_delta.runtime.spectral_shift import SpectralShift
    from svdiff_delta.runtime.targets import TargetLayer


class Held(NamedTuple):
    """The tensors that a layer holds in a form, and its gains' map.

    Attributes:
        response: how the gain depends on δ.
        tensors: float32, on the layer's device or the CPU, by name; None for those that a layer of this basis does not
            need.
    """

    response: Response
    tensors: dict[str, Tensor | None]


class LayerForm(Protocol):
    """A way to compute a shifted layer.

    Attributes:
        name: what users call it.
        keeps_weight: whether W stays in the layer.
        multiplies: the most products that a layer needs for it beside its own.
    """

    name: str
    keeps_weight: bool

    def obstacle(self, place: TargetLayer, module: nn.Module, dtype: torch.dtype) -> str:
        """Return why it cannot serve a layer that computes in a dtype; empty if it can."""

    def hold(self, place: TargetLayer, module: nn.Module) -> Held:
        """Return what the layer is to hold."""

    def call(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        """Return the layer's output with a gain, (R,) or (S, R)."""

    def weight(self, shift: SpectralShift, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW in the weight's shape with a gain (R,), in the dtype of sums."""
