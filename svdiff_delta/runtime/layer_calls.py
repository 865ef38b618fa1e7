"""Call a layer's own forward with another weight, and keep what a repeated call needs.

Some forwards write: into attributes of their layer (features of the frames before), or into a tensor they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from . import factored_ops
from .live_weight import own_class
from .quantized import quantized_weight
from .quantized.gradient import linear_output
from .watched_operations import plain

HELD: Final = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes that torch keeps; a twin shares their contents with its layer."""


def forward_with(module: nn.Module, weight: Tensor, /, *args: Any, **options: Any) -> Tensor:
    """Return what a layer's class computes with another weight, in whose dtype its other parameters are then too.

    What the forward writes into attributes of its layer is kept there, as without a delta.
    """
    result, written = forward_apart(module, weight, *args, **options)
    module.__dict__.update(written)
    return result


def forward_apart(module: nn.Module, weight: Tensor, /, *args: Any, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """Return what `forward_with` does and the attributes that the forward has written; the layer is untouched."""
    cls = own_class(module)
    twin = _twin(module, cls)
    others = {name: found if found is None else found.to(weight.dtype) for name, found in module._parameters.items()}
    twin.__dict__["_parameters"] = {**others, "weight": weight}
    result = cast("Tensor", cls.forward(twin, *args, **options))
    return result, _written(twin, module)


def own_output(
    module: nn.Module, x: Tensor, /, *args: Any, bias: bool = True, change: Tensor | None = None, **options: Any
) -> Tensor:
    """Return what a layer computes without a delta, with or without its bias.

    Args:
        module: the layer.
        x: what it is called with.
        args: what else.
        bias: whether its bias counts.
        change: what it makes of this, without its bias, is added; nothing if not given.
        options: what else, by name.
    """
    own_bias = module._parameters.get("bias") if bias else None

    def own(x: Tensor, change: Tensor | None) -> Tensor:
        unpacked = _unpacked(module)
        if unpacked is not None:  # once for both
            offset = None if own_bias is None else own_bias.to(unpacked.dtype)
            y = F.linear(x, unpacked, offset)
            return y if change is None else y + F.linear(change, unpacked)
        y = _own_forward(module, x, *args, bias=bias, **options)
        return y if change is None else y + _own_forward(module, change, *args, bias=False, **options)

    def bare(weight: Tensor, x: Tensor) -> Tensor:
        return factored_ops.inner(module, weight, x, *args, **options)

    given = (x, change, own_bias)
    graph = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in given)
    if graph and not plain() and quantized_weight(module) is not None:
        return linear_output(module, own, bare, x, change, own_bias)
    return own(x, change)


def _unpacked(module: nn.Module) -> Tensor | None:
    """Return the weight that a quantized layer's forward multiplies by, if that is all it does; else None."""
    if plain() or torch.compiler.is_compiling():
        return None
    stored = quantized_weight(module)
    return None if stored is None or stored.unpack is None else stored.unpack()


def _own_forward(module: nn.Module, x: Tensor, /, *args: Any, bias: bool, **options: Any) -> Tensor:
    cls = own_class(module)
    twin = _twin(module, cls)
    if not bias:
        twin.__dict__["_parameters"] = {**module._parameters, "bias": None}
    result = cast("Tensor", cls.forward(twin, x, *args, **options))
    module.__dict__.update(_written(twin, module))
    return result


@dataclass(frozen=True)
class Call:
    """A call as it was before the layer computed, to be repeated as often as needed.

    Attributes:
        module: a twin of the layer with its attributes of then.
        args: what it was called with.
        options: what it was called with by name.
    """

    module: nn.Module
    args: tuple[Any, ...]
    options: dict[str, Any]

    @staticmethod
    def of(module: nn.Module, args: Sequence[Any], options: Mapping[str, Any]) -> Call:
        """Return a copy of a call: of its tensors too, which the layer may write into."""
        given = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, tuple(args))
        named = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, dict(options))
        return Call(_twin(module, type(module)), given, named)

    def again(self, dtype: torch.dtype | None = None) -> Call:
        """Return a copy that may be used up, its floating-point numbers in another dtype if one is given."""
        call = Call.of(self.module, self.args, self.options)
        if dtype is None:
            return call
        args, options = tree_map(lambda value: _widen(value, dtype), (call.args, call.options))
        return Call(call.module, args, options)


def _written(twin: nn.Module, module: nn.Module) -> dict[str, Any]:
    """Return the attributes that a forward has written into a layer's twin."""
    before = module.__dict__
    changed = {name: value for name, value in twin.__dict__.items() if name not in HELD}
    return {name: value for name, value in changed.items() if name not in before or before[name] is not value}


def _twin(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    twin = cls.__new__(cls)
    twin.__dict__.update(module.__dict__)
    return twin


def _widen(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
