"""Say what the forward of a live model depends on besides its inputs, for who repeats its operations without Python."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain
from weakref import ref

from torch import nn

from .shift import Shift
from .trained_gains import TrainedGains


class ForwardState:
    """The operations of a model's forward, and the memory that they work on.

    Another δ on the same layers and another scale change neither: they write into the memory that is there.

    Args:
        model: the model, with or without deltas on it.

    Attributes:
        path: what its operations depend on.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [each for each in chain(model.parameters(), model.buffers()) if each is not None]
        self._tensors = [ref(each) for each in tensors]
        self._places = [each.data_ptr() for each in tensors]
        self.path: Hashable = tuple(_path(module) for module in model.modules() if isinstance(module, Shift))

    def has_memory_of(self, other: ForwardState) -> bool:
        """Tell whether weights, factors and gains are the same tensors at the same places."""
        if self._places != other._places:
            return False
        pairs = zip(self._tensors, other._tensors, strict=True)
        return all(mine() is not None and mine() is theirs() for mine, theirs in pairs)


def _path(shift: Shift) -> Hashable:
    """Return what decides what a layer does with an input."""
    rows = None if shift.rows is None else len(shift.rows)
    return shift.idle, shift.enabled, rows, shift.together is None


def why_not_repeatable(model: nn.Module) -> str | None:
    """Return why a forward of a model is more than operations on tensors; None if it is not."""
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        return "the model is compiled"
    for module in model.modules():
        if getattr(module, "_hf_hook", None) is not None:
            return "the model is offloaded"
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if any(not isinstance(getattr(hook, "__self__", None), TrainedGains) for hook in hooks):
            return "hooks look at its layers"
        if getattr(getattr(module, "_diffusers_hook", None), "hooks", None):
            return "diffusers' hooks keep, cast or move what its layers compute"
    return None
