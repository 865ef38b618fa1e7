"""The resident form: W stays in its layer, and ΔW is made of the layer's own output or input by the square factor.

With y = W x, and F the square factor (Uᵀ where rows ≤ columns, else Vᵀ), S(v) = ((v Fᵀ) ⊙ Δσ/σ) F:

    rows ≤ columns:  y + S(y)           since U (Δσ/σ ⊙ Uᵀ W x) = U (Δσ ⊙ Vᵀ x)
    rows > columns:  W x + W S(x)       since W V (Δσ/σ ⊙ Vᵀ x) = U (Δσ ⊙ Vᵀ x)

The smallest singular values (the tail), by which nothing may be divided, have two thin products of their own. Nothing
of W is read, only what the layer computes, so weights may be stored in any way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import has_own_forward, weight_of
from svdiff_delta.runtime import factored_ops
from svdiff_delta.runtime.gain_map import resident
from svdiff_delta.runtime.layer_calls import own_output
from svdiff_delta.runtime.per_sample import multiply
from svdiff_delta.runtime.quantized import needs_own_call, plain_weight
from svdiff_delta.runtime.targets import TargetLayer
from svdiff_delta.runtime.wide_product import autocast_dtype, exact, spectral_product, wide, wide_product
from svdiff_delta.svd.decomposition import matricize, unmatricize

from .additive import own_map
from .form import Held
from .square_change import square_change
from .two_products import product_pair

if TYPE_CHECKING:
    from svdiff_delta.runtime.spectral_shift import SpectralShift


class Resident:
    """The square factor is held beside W."""

    name = "resident"
    keeps_weight = True

    def obstacle(self, place: TargetLayer, module: nn.Module, dtype: torch.dtype) -> str:  # noqa: ARG002
        """Return why it cannot serve a layer."""
        if why := own_map(module):
            return why
        rows, columns = factored_ops.sides(place.parameter)
        if isinstance(module, nn.Embedding):
            return "" if rows > columns else "this embedding has fewer rows than columns"
        if rows > columns and not factored_ops.is_one_product(module):
            return "this convolution has more outputs than one of them has inputs, at several positions"
        return ""

    def hold(self, place: TargetLayer, module: nn.Module) -> Held:
        """Return the square factor as the cache has it, and the tail's two products' weights."""
        square = resident(place.basis())
        pair = {} if square.tail is None else product_pair(module, place.parameter, *square.tail)
        tensors = {"inner": pair.get("inner"), "outer": pair.get("outer"), "square": square.factor}
        return Held(square.response, tensors)

    def call(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        """Return the layer's output, rounded once where it is one product."""
        autocast, own = autocast_dtype(x), weight_of(module).dtype
        one = _is_one_product(module, x)
        if one and autocast is None and x.dtype != own:
            return own_output(module, x)  # which refuses such an input
        total, dtype = self.unrounded(shift, module, gain, x, *args, **options)
        return factored_ops.laid_out(module, total, x, (autocast or own) if one else dtype)

    def unrounded(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, torch.dtype]:
        """Return the output in the dtype of sums, and the dtype of the layer's own."""
        main = gain[..., : len(shift.square)]
        if _is_one_product(module, x):
            total, dtype = self._product(shift, module, main, x), x.dtype
        else:
            total, dtype = self._around(shift, module, main, x, *args, **options)
        if shift.inner is not None:
            total = total + self._tail(shift, module, gain[..., len(shift.square) :], x, *args, **options)
        return total, dtype

    def _product(self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor) -> Tensor:
        """Return the output of one matrix product in the dtype of sums.

        A change that is added to a rounded output is lost in its last bit, so y is not rounded in between.
        """
        weight, bias = factored_ops.own_weight(module).flatten(1), cast("Tensor | None", getattr(module, "bias", None))
        rows = factored_ops.channels_last(module, x)
        if shift.outputs:
            y = wide_product(rows, weight)
            y = y + spectral_product(y, shift.square, gain)
        else:
            changed = spectral_product(rows, shift.square, gain)
            both = wide_product(torch.stack([rows.to(changed.dtype), changed]), weight)  # W is read once
            y = both[0] + both[1]
        return factored_ops.channels_back(module, y if bias is None else y + bias)

    def _around(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, torch.dtype]:
        """Return the output of a layer's own forward with the change, and the dtype of that forward."""
        bias = cast("Tensor | None", getattr(module, "bias", None))
        y = own_output(module, x, *args, **options)
        if shift.outputs:
            rows = factored_ops.channels_last(module, y)
            change = spectral_product(rows, shift.square, gain, None if bias is None else bias.to(rows.dtype))
        else:
            rows = factored_ops.channels_last(module, x)
            changed = spectral_product(rows, shift.square, gain).to(x.dtype)
            change = factored_ops.channels_last(
                module, own_output(module, factored_ops.channels_back(module, changed), *args, bias=False, **options)
            )
        return y.to(change.dtype) + factored_ops.channels_back(module, change), y.dtype

    def _tail(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        inner, outer = shift.inner, shift.outer
        with exact(x):
            kept = wide(inner.dtype)
            given = x if isinstance(module, nn.Embedding) else x.to(kept)
            hidden = factored_ops.inner(module, inner.to(kept), given, *args, **options)
            hidden = multiply(hidden, gain, factored_ops.tail(module, gain.shape[-1])).to(kept)
            return factored_ops.outer(module, outer.to(kept), hidden, bias=False)

    def weight(self, shift: SpectralShift, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW; ΔW comes of W as it is here, in the dtype of sums."""
        weight, tail = plain_weight(module), None
        if shift.inner is not None:
            tail = factored_ops.factors(module, shift.parameter, shift.inner, shift.outer)
        matrix = matricize(weight.to(wide(weight.dtype)), shift.parameter.axis)
        return weight + unmatricize(
            square_change(matrix, shift.square, gain, tail), shift.parameter.shape, shift.parameter.axis
        )


def _is_one_product(module: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer's output for an input is the product with a weight that others than the layer may use."""
    return factored_ops.is_one_product(module) and not has_own_forward(module) and not needs_own_call(module, x)
