"""The additive form: `W x + U (Δσ ⊙ Vᵀ x)`, which is the baked weight's output on any base."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from svdiff_delta.runtime import factored_ops
from svdiff_delta.runtime.gain_map import Factors
from svdiff_delta.runtime.layer_calls import own_output
from svdiff_delta.runtime.per_sample import multiply
from svdiff_delta.runtime.quantized import needs_own_call, plain_weight

from .form import Held
from .two_products import matrix_of, own_map, product_pair

if TYPE_CHECKING:
    from svdiff_delta.runtime.spectral_shift import SpectralShift
    from svdiff_delta.runtime.targets import TargetLayer


class Additive:
    """Both factors are held beside W."""

    name = "additive"
    keeps_weight = True

    def obstacle(self, place: TargetLayer, module: nn.Module, dtype: torch.dtype) -> str:  # noqa: ARG002
        """Return why it cannot serve a layer."""
        return own_map(module)

    def hold(self, place: TargetLayer, module: nn.Module) -> Held:
        """Return U and Vᵀ as the two products' weights."""
        factors = with_room(place.additive())
        return Held(factors.response, product_pair(module, place.parameter, factors.rows, factors.columns))

    def call(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        """Return the layer's own output plus the change."""
        own = needs_own_call(module, x)
        given = x.to(shift.inner.dtype) if own and x.is_floating_point() else x
        hidden = factored_ops.inner(module, shift.inner, given, *args, **options)
        # In float32, whatever the model's dtype.
        hidden = multiply(hidden, gain, factored_ops.tail(module, gain.shape[-1])).to(hidden.dtype)
        change = factored_ops.outer(module, shift.outer, hidden, bias=False)
        if own:
            y = own_output(module, x, *args, **options)
            return y + change.to(y.dtype)
        return factored_ops.added(module, x, change, *args, **options)

    def weight(self, shift: SpectralShift, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW."""
        return plain_weight(module) + matrix_of(shift, module, gain)


def with_room(factors: Factors) -> Factors:
    """Return factors whose first product is multiplied by a power of two, which the gain takes back.

    Vᵀ x is up to √columns times as large as x, which may reach float16's largest number; the layer's output need not.
    """
    room = 2.0 ** ceil(log2(factors.rows.shape[1]) / 2)
    return Factors(factors.rows / room, factors.columns, replace(factors.response, slope=factors.response.slope * room))
