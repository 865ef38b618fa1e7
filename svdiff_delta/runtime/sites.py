"""Shifted layers put in and taken out again: their forward, their dropped weight, and what a move does to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from inspect import signature
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from svdiff_delta.errors import AttachError
from svdiff_delta.kinds import has_own_forward, weight_of

from .forwards import find_forward, own_forward
from .layers import NormShift, Shift, SpectralShift, WholeShift
from .live_weight import SLOT, own_class, watch
from .places import Place
from .products import HALF, is_grouped, narrow


class Site(Protocol):
    """One weight that is shifted, and the way back."""

    def check(self, *, force: bool = False) -> None:
        """Check that `restore` would bring back what was there.

        Args:
            force: whether what was added to the weight may be lost.

        Raises:
            AttachError: something else has changed the layer since.
        """

    def restore(self) -> None:
        """Let the layer be what it was."""


class LiveSite:
    """A layer whose output a `Shift` computes.

    Args:
        name: the parameter.
        module: the layer.
        shift: what computes its output.
        read: reads the weight again if it is to be dropped, because `shift` stands for it.

    Raises:
        AttachError: something has replaced the layer's forward.
    """

    def __init__(self, name: str, module: nn.Module, shift: Shift, read: Callable[[], Tensor] | None = None) -> None:
        self.name, self.module, self.shift = name, module, shift
        self._own, self._forward = own_forward(module), MethodType(_shifted_forward, module)
        find_forward(name, module, self._own).put(self._forward)
        module.add_module(SLOT, shift)
        self._unwatch = watch(module)
        self._dropped = _Dropped(module, read) if read is not None else None
        module.__dict__["_apply"] = self._apply

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast the layer, as its own `_apply`: the dropped weight stays dropped, unless it becomes narrower.

        Two products of factors in half precision are not W to half precision, nor are they to float8, in which some
        keep weights between calls: so the layer goes over to the additive form then.
        """
        shift, target = self.shift, fn(weight_of(self.module).new_empty(0)).dtype
        if (target in HALF or narrow(target)) and isinstance(shift, SpectralShift) and shift.whole:
            if self._dropped is not None:
                self._dropped.fill()
            shift.become_additive(self.module)
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

    def restore(self) -> None:
        """Let the layer be what it was."""
        with suppress(AttachError):  # whoever else holds the shifted forward gets to the layer's own by it
            find_forward(self.name, self.module, self._forward, after=True).clear(self._own)
        self.module.__dict__.pop("_apply", None)
        if self._dropped is not None:
            self._dropped.fill()
        self._unwatch()
        delattr(self.module, SLOT)


class _Dropped:
    """A weight that is not in memory: one NaN seen as many, so that whoever reads past the shift notices at once.

    The model's state dict shows it as it was, since loaders of LoRA, offloading and saving go by that.

    Args:
        module: the layer.
        read: reads the weight as it was, on any device.
    """

    def __init__(self, module: nn.Module, read: Callable[[], Tensor]) -> None:
        self.module, self.read, self.filled = module, read, False
        self.shape = self.weight.shape
        self.weight.data = torch.full((), torch.nan, dtype=self.weight.dtype, device=self.weight.device)
        self.expand()

        def show(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:  # noqa: ARG001
            weight = weight_of(module)
            device = weight.device if weight.device.type != "meta" else None
            state[f"{prefix}weight"] = read().to(device, weight.dtype)

        self.hook = module.register_state_dict_post_hook(show)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's parameter; moves may put another one in its place."""
        return weight_of(self.module)

    def shrink(self) -> None:
        """Make it one number, which can be moved; torch would move as many as there seem to be."""
        if not self.filled:
            self.weight.data = self.weight.data[(0,) * len(self.shape)]

    def expand(self) -> None:
        """Let the number be seen as many."""
        if not self.filled:
            self.weight.data = self.weight.data.expand(self.shape)

    def fill(self) -> None:
        """Put the weight back; one that was offloaded since is brought in by whoever offloads it."""
        if not self.filled:
            if self.weight.device.type != "meta":
                self.weight.data = self.read().to(self.weight.device, self.weight.dtype)
            self.hook.remove()
            self.filled = True


def install(place: Place, *, exact: bool, trainable: bool) -> list[LiveSite]:
    """Let shifts compute the output of a layer and of those it is tied to; drop its weight where that is possible.

    Args:
        place: the layer and its weight.
        exact: whether to use the additive form.
        trainable: whether δ takes gradients; tied layers train one parameter.
    """
    shift = _make_shift(place, place.module, exact=exact, trainable=trainable)
    whole = isinstance(shift, SpectralShift) and shift.whole
    droppable = whole and not place.shared and not place.offloaded
    sites = [LiveSite(place.name, place.module, shift, place.live if droppable else None)]
    for module in place.twins:
        twin = _make_shift(place, module, exact=exact, trainable=trainable)
        twin.value = shift.value
        sites.append(LiveSite(place.name, module, twin))
    return sites


def _make_shift(place: Place, module: nn.Module, *, exact: bool, trainable: bool) -> Shift:
    if place.parameter.kind == "elementwise":
        return NormShift(place, module, trainable=trainable)
    if is_grouped(module) or has_own_forward(module):
        return WholeShift(place, module, trainable=trainable)
    return SpectralShift(place, module, exact=exact, trainable=trainable)


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
