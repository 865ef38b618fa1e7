"""The two products of a layer whose factors are both held."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import has_own_forward
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.runtime import factored_ops
from svdiff_delta.runtime.quantized import quantized_weight
from svdiff_delta.svd.decomposition import unmatricize

if TYPE_CHECKING:
    from svdiff_delta.runtime.spectral_shift import SpectralShift


def product_pair(module: nn.Module, parameter: Parameter, rows: Tensor, columns: Tensor) -> dict[str, Tensor | None]:
    """Return the weights of both products, for `inner` and `outer`.

    Args:
        module: the layer.
        parameter: what the delta says about its weight.
        rows: (R, columns of the matrix).
        columns: (rows of the matrix, R).
    """
    inner, outer = factored_ops.product_weights(module, parameter, rows, columns)
    return {"inner": inner, "outer": outer}


def matrix_of(shift: SpectralShift, module: nn.Module, gain: Tensor) -> Tensor:
    """Return what both products stand for, in the weight's shape and the wider dtype of theirs and the gain's."""
    rows, columns = factored_ops.factors(module, shift.parameter, shift.inner, shift.outer)
    kept = torch.promote_types(gain.dtype, rows.dtype)
    matrix = (columns.to(kept) * gain) @ rows.to(kept)
    return unmatricize(matrix, shift.parameter.shape, shift.parameter.axis)


def own_map(module: nn.Module) -> str:
    """Return why no two products stand for a layer; empty if they do."""
    if factored_ops.is_grouped(module):
        return "the groups of this convolution see different inputs"
    stored = quantized_weight(module)
    if stored is not None and not stored.cast:  # what its own forward computes is known
        return ""
    return f"{type(module).__name__} has a forward of its own" if has_own_forward(module) else ""
