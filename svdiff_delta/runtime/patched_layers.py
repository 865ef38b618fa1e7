"""Put shifted layers into a model and take them out: their forward, their dropped weight, moves between devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from inspect import signature
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.errors import AttachError

from .dropped_weight import Dropped
from .live_weight import SLOT, own_class, watch
from .own_forwards import find_forward, own_forward
from .quantized import compute_dtype
from .shift import Shift


class LivePatch:
    """A layer whose output a `Shift` computes.

    Args:
        name: the parameter.
        module: the layer.
        make: makes what computes its output.
        dropped: the weight, if it is to be dropped where that stands for it.
    """

    def __init__(self, name: str, module: nn.Module, make: Callable[[], Shift], dropped: Dropped | None = None) -> None:
        self.name, self.module, self._make = name, module, make
        self._own, self._forward = own_forward(module), MethodType(_shifted_forward, module)
        self._dropped, self._begun = dropped, False

    @property
    def shift(self) -> Shift:
        """The module that computes the layer's output."""
        return cast("Shift", self.module._modules[SLOT])

    def put(self) -> None:
        """Let the shift compute the layer's output, and drop its weight where the shift stands for that.

        Raises:
            AttachError: something has replaced the layer's forward.
        """
        shift = self._make()
        self._begun = True
        self.module.add_module(SLOT, shift)
        find_forward(self.name, self.module, self._own).put(self._forward)
        watch(self.module)
        if self._dropped is not None and not shift.keeps_weight:
            self._dropped.drop()
        self.module.__dict__["_apply"] = self._apply

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast the layer, as its own `_apply`: the dropped weight stays dropped, unless it becomes narrower.

        Two products of factors in half precision are not W to half precision, nor are they to float8, in which some
        keep weights between calls: so the layer goes over to a form that keeps W then.
        """
        probe = torch.empty(0, dtype=compute_dtype(self.module), device=weight_of(self.module).device)
        shift, target = self.shift, fn(probe).dtype
        if form := shift.other_form(target, self.module):
            if self._dropped is not None:
                self._dropped.fill()
            shift.become(form, self.module)
        if self._dropped is not None:
            self._dropped.shrink()
        own_class(self.module)._apply(self.module, fn, recurse)
        if self._dropped is not None:
            self._dropped.expand()
        return self.module

    def check(self, *, force: bool = False) -> None:
        """Check that the layer's forward is where it was put, or where hooks have moved it.

        Args:
            force: whether it may be elsewhere: what was put around it then goes on to the layer's own forward.

        Raises:
            AttachError: something else has replaced it.
        """
        if not force:
            find_forward(self.name, self.module, self._forward, after=True)

    def read(self) -> None:
        """Read the weight, if it was dropped.

        Raises:
            AttachError: it is not there any more.
        """
        if self._dropped is not None:
            self._dropped.read()

    def restore(self) -> None:
        """Let the layer be what it was: first its weight, which the shift stands for until then."""
        if not self._begun:
            return
        if self._dropped is not None:
            self._dropped.fill()
        with suppress(AttachError):  # whoever else holds the shifted forward gets to the layer's own by it
            find_forward(self.name, self.module, self._forward, after=True).clear(self._own)
        self.module.__dict__.pop("_apply", None)
        self.module.__class__ = own_class(self.module)
        self.module._modules.pop(SLOT, None)
        self._begun = False


def _shifted_forward(self: nn.Module, /, *args: Any, **options: Any) -> Tensor:
    shift = cast("Shift | None", self._modules.get(SLOT))
    if shift is None:  # the delta is off, and a hook has kept this forward
        return cast("Tensor", type(self).forward(self, *args, **options))
    if not args:
        args = (options.pop(_first_argument(own_class(self).forward)),)
    # Not called as a module: hooks would move the layer that it is given.
    return shift.forward(self, *args, **options)


@cache
def _first_argument(forward: Callable[..., Any]) -> str:
    """Return what a layer's class calls its input."""
    return list(signature(forward).parameters)[1]
