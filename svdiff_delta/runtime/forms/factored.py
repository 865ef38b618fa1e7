"""The factored form (Z form): `U (g ⊙ Z x)` with Z = Uᵀ W stands for the whole of W + ΔW, and W is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.runtime import factored_ops
from svdiff_delta.runtime.factored_ops import HALF, narrow
from svdiff_delta.runtime.factored_product import factored_product, is_trained
from svdiff_delta.runtime.gain_map import factored
from svdiff_delta.runtime.original_weights import device_of
from svdiff_delta.runtime.per_sample import multiply
from svdiff_delta.runtime.quantized import quantized_weight
from svdiff_delta.runtime.sharded import is_sharded
from svdiff_delta.runtime.wide_product import autocast_dtype

from .costs import whole_is_cheaper
from .form import Held
from .two_products import matrix_of, own_map, product_pair

if TYPE_CHECKING:
    from svdiff_delta.runtime.spectral_shift import SpectralShift
    from svdiff_delta.runtime.targets import TargetLayer


class Factored:
    """Both factors are held in the place of W."""

    name = "factored"
    keeps_weight = False

    def obstacle(self, place: TargetLayer, module: nn.Module, dtype: torch.dtype) -> str:  # noqa: ARG002
        """Return why it cannot serve a layer."""
        if (stored := quantized_weight(module)) is not None:
            return f"its weight is quantized ({stored.scheme}), and stays so"
        if is_sharded(weight_of(module)):
            return "its weight is sharded over processes, and cannot be dropped"
        if dtype in HALF or narrow(dtype):
            return "a product of two factors in half precision is not W to half precision"
        return own_map(module)

    def hold(self, place: TargetLayer, module: nn.Module) -> Held:
        """Return U and Z, or WV and Vᵀ, as the two products' weights."""
        device = device_of(module)
        factors = factored(place.matrix().to(device), place.basis().to(device))
        return Held(factors.response, product_pair(module, place.parameter, factors.rows, factors.columns))

    def call(
        self, shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        """Return the layer's output: by both products, or by W + ΔW where many positions make that cheaper."""
        if self._whole(shift, module, gain, x):
            bias = getattr(module, "bias", None)
            weight = factored_ops.as_called(module, self.weight(shift, module, gain).to(shift.inner.dtype))
            return factored_ops.inner(module, weight, x, *args, bias=bias, **options)
        if factored_ops.is_linear(module) and is_trained(x, shift.inner, gain):
            return factored_product(x, shift.inner, shift.outer, gain, getattr(module, "bias", None))
        hidden = factored_ops.inner(module, shift.inner, x, *args, **options)
        hidden = multiply(hidden, gain, factored_ops.tail(module, gain.shape[-1])).to(hidden.dtype)
        return factored_ops.outer(module, shift.outer, hidden, bias=True)

    def weight(self, shift: SpectralShift, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW."""
        return matrix_of(shift, module, gain)

    @staticmethod
    def _whole(shift: SpectralShift, module: nn.Module, gain: Tensor, x: Tensor) -> bool:
        if gain.ndim > 1 or isinstance(module, nn.Embedding) or autocast_dtype(x) is not None:
            return False
        graded = torch.is_grad_enabled() and (gain.requires_grad or x.requires_grad)
        rows, columns = factored_ops.sides(shift.parameter)
        return not graded and whole_is_cheaper(rows, columns, len(gain), factored_ops.positions(module, x))
