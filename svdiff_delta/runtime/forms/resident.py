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
from svdiff_delta.runtime.factored_ops import HALF
from svdiff_delta.runtime.gain_map import resident
from svdiff_delta.runtime.layer_calls import own_output
from svdiff_delta.runtime.layer_product import cast_product, layer_product
from svdiff_delta.runtime.per_sample import multiply
from svdiff_delta.runtime.quantized import needs_own_call, plain_weight
from svdiff_delta.runtime.watched_operations import plain
from svdiff_delta.runtime.wide_product import autocast_dtype, exact, spectral_product, wide, wide_product
from svdiff_delta.svd.decomposition import matricize, unmatricize

from .form import Held
from .square_change import square_change
from .two_products import own_map, product_pair

if TYPE_CHECKING:
    from svdiff_delta.runtime.spectral_shift import SpectralShift
    from svdiff_delta.runtime.targets import TargetLayer


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
        main, low = _split(shift, gain)
        if one:
            dtype, tail = autocast or own, None if low is None else self._tail(shift, module, low, x)
            return factored_ops.laid_out(module, self._product(shift, module, main, x, tail, dtype), x, dtype)
        y, change = self._around(shift, module, main, x, *args, **options)
        # A sum of three is rounded in the end.
        total, dtype = y if change is None else (y if low is None else y.to(wide(y.dtype))) + change, y.dtype
        if low is not None:
            total = total + self._tail(shift, module, low, x, *args, **options)
        return factored_ops.laid_out(module, total, x, dtype)

    def unrounded(self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor) -> Tensor:
        """Return the layer's output in the dtype of its sums, which `call` rounds: by it errors are measured."""
        main, low = _split(shift, gain)
        tail = None if low is None else self._tail(shift, module, low, x)
        if _is_one_product(module, x):
            return self._product(shift, module, main, x, tail, wide(weight_of(module).dtype))
        y, change = self._around(shift, module, main, x)
        total = y.to(wide(y.dtype)) if change is None else y.to(wide(y.dtype)) + change
        return total if tail is None else total + tail

    def _product(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, tail: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Return the output of one matrix product, in the dtype of sums where it is not rounded to another right away.

        A change that is added to a rounded output is lost in its last bit, so y is not rounded in between.
        """
        weight, bias = factored_ops.own_weight(module).flatten(1), cast("Tensor | None", getattr(module, "bias", None))
        rows = factored_ops.channels_last(module, x)
        more = None if tail is None else factored_ops.channels_last(module, tail)
        if shift.outputs:
            y = layer_product(rows, weight, shift.square, gain, bias=bias, more=more, dtype=dtype)
        else:
            change = spectral_product(rows, shift.square, gain)
            y = wide_product(rows, weight, change, bias, dtype if more is None else None)
            y = y if more is None else y + more
        return factored_ops.channels_back(module, y)

    def _around(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output of a layer's own forward, and the change to add; none where the forward has added it."""
        bias = cast("Tensor | None", getattr(module, "bias", None))
        if not shift.outputs:
            change = spectral_product(factored_ops.channels_last(module, x), shift.square, gain).to(x.dtype)
            return own_output(module, x, *args, change=factored_ops.channels_back(module, change), **options), None
        y = own_output(module, x, *args, **options)
        rows = factored_ops.channels_last(module, y)
        change = spectral_product(rows, shift.square, gain, None if bias is None else bias.to(rows.dtype))
        return y, factored_ops.channels_back(module, change)

    def _tail(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        inner, outer = shift.inner, shift.outer
        with exact(x):
            kept = wide(inner.dtype)
            if factored_ops.is_linear(module) and inner.dtype in HALF and x.device.type == "cpu" and not plain():
                hidden = multiply(cast_product(x, inner), gain, (gain.shape[-1],)).to(kept)
                return cast_product(hidden, outer)
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


def _split(shift: SpectralShift, gain: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gains of the square factor's singular values, and those of the tail, if it has one."""
    if shift.inner is None:
        return gain, None
    return gain[..., : len(shift.square)], gain[..., len(shift.square) :]


def _is_one_product(module: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer's output for an input is the product with a weight that others than the layer may use."""
    return factored_ops.is_one_product(module) and not has_own_forward(module) and not needs_own_call(module, x)
