"""Compute the output of a shifted linear layer or convolution by two products: the Z form or the additive form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.svd.decomposition import unmatricize

from . import factored_ops
from .factored_ops import HALF
from .gain_map import Form, factored
from .model_locks import ordinary
from .per_sample import multiply
from .shift import Shift
from .targets import TargetLayer


class SpectralShift(Shift):
    """A linear layer or convolution as `outer(inner(x) ⊙ gain)`; in additive form that is added to its own output.

    Args:
        place: the layer and its weight.
        module: the layer itself, or one that is tied to it.
        exact: whether to use the additive form.
        trainable: as in `Shift`.

    Attributes:
        whole: whether the two products stand for the weight itself (the Z form).
    """

    inner: Tensor
    outer: Tensor

    def __init__(self, place: TargetLayer, module: nn.Module, *, exact: bool, trainable: bool) -> None:
        dtype = weight_of(module).dtype
        whole = not exact and dtype not in HALF  # a product of two rounded factors is not W to half precision
        form = factored(place.matrix(), place.basis()) if whole else place.additive()
        super().__init__(place, module, form.response, trainable=trainable)
        self.whole = whole
        # A function of its own, so that copies of the model share what it needs.
        self._additive: Callable[[], Form] = lambda: place.additive()
        self._hold(module, form, dtype)

    def _hold(self, module: nn.Module, form: Form, dtype: torch.dtype) -> None:
        inner, outer = factored_ops.product_weights(module, self.parameter, form.rows, form.columns)
        device = self.gain.device
        self._keep(inner=inner.to(device, dtype), outer=outer.to(device, dtype))

    @ordinary
    def become_additive(self, module: nn.Module) -> None:
        """Go over to the additive form, with the δ that is there now."""
        form = self._additive()
        index = torch.arange(form.response.floor.numel()) if self.response.pick is None else self.response.pick
        moved = self.response.slope != 0

        def change(gain: Tensor) -> Tensor:
            found = torch.zeros(*gain.shape[:-1], form.response.floor.numel(), dtype=torch.float64)
            values = (gain.cpu().double() - self.response.offset) / self.response.slope
            found[..., index[moved]] = values[..., moved]
            return found.float().to(gain.device)

        gain, rows = change(self.gain), None if self.rows is None else change(self.rows)
        self._respond(form.response, self.gain.device)
        self._keep(gain=gain, rows=rows)
        self._hold(module, form, self.inner.dtype)
        self.whole = False

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain."""
        hidden = factored_ops.inner(module, self.inner, x, *args, **options)
        # In float32, whatever the model's dtype.
        hidden = multiply(hidden, gain, factored_ops.tail(module, gain.shape[-1])).to(hidden.dtype)
        change = factored_ops.outer(module, self.outer, hidden, bias=self.whole)
        return change if self.whole else factored_ops.added(module, x, change, *args, **options)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW with this gain."""
        rows, columns = factored_ops.factors(module, self.parameter, self.inner, self.outer)
        matrix = (columns.to(gain.dtype) * gain) @ rows.to(gain.dtype)
        change = unmatricize(matrix, self.parameter.shape, self.parameter.axis)
        return (change if self.whole else weight_of(module) + change).to(weight_of(module).dtype)
