"""Run a layer's own forward on W + ΔW, put together at every call."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.errors import InputError
from svdiff_delta.svd.decomposition import matricize, unmatricize

from .forms.square_change import square_change
from .gain_map import resident
from .layer_calls import forward_apart, forward_with
from .shift import Shift
from .wide_product import wide

if TYPE_CHECKING:
    from .targets import TargetLayer


class WholeShift(Shift):
    """A layer that no two products stand for: its own forward runs on W + ΔW, put together at every call.

    These are grouped convolutions, and layers whose class has a forward of its own.

    Args:
        place: the layer and its weight.
        module: the layer itself, or one that is tied to it.
        both: whether both factors are held, so that ΔW is the baked weight's on any base; else only the square one.
        trainable: as in `Shift`.

    Attributes:
        left: (rows, R) the columns of both factors, or of the tail; None where there is no tail.
        right: (R, columns) their rows.
        square: (K, K) the square factor; None where both factors are held.
    """

    left: Any
    right: Any
    square: Any

    def __init__(self, place: TargetLayer, module: nn.Module, *, both: bool, trainable: bool) -> None:
        if both:
            factors = place.additive()
            response, tensors = factors.response, {"left": factors.columns, "right": factors.rows, "square": None}
        else:
            found = resident(place.basis())
            right, left = found.tail or (None, None)
            response, tensors = found.response, {"left": left, "right": right, "square": found.factor}
        super().__init__(place, module, response, trainable=trainable)
        device = self.gain.device
        self._keep(**{name: each if each is None else each.to(device) for name, each in tensors.items()})

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain; samples with one each go through the layer one by one.

        Raises:
            InputError: they would read what the layer has kept of one another.
        """
        if gain.ndim == 1:
            return forward_with(module, self.weight(module, gain), x, *args, **options)
        size = x.shape[0]

        def share(value: Any, index: int) -> Any:
            batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
            return value.unflatten(0, (-1, len(gain)))[:, index] if batched else value

        outputs = []
        for index, row in enumerate(gain):
            given, named = tree_map(partial(share, index=index), ((x, *args), options))
            output, written = forward_apart(module, self.weight(module, row), *given, **named)
            if written:
                raise InputError(
                    f"{self.name}: the layer keeps `{min(written)}` from call to call, for all samples together",
                    fix="run the model once for each delta",
                )
            outputs.append(output)
        return torch.stack(outputs, 1).flatten(0, 1)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW with this gain."""
        weight = weight_of(module)
        if self.square is None:
            change = (self.left.to(gain.dtype) * gain) @ self.right.to(gain.dtype)
        else:
            matrix = matricize(weight.to(wide(weight.dtype)), self.parameter.axis)
            tail = None if self.left is None else (self.right, self.left)
            change = square_change(matrix, self.square, gain, tail)
        return (weight + unmatricize(change, self.parameter.shape, self.parameter.axis)).to(weight.dtype)
