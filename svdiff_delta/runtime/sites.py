"""Shifted layers put in and taken out again: their forward, their dropped weight, and what a move does to them."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor, nn

from svdiff_delta.errors import AttachError

from .layers import NormShift, Shift, SpectralShift, WholeShift
from .places import SLOT, Place
from .products import HALF, is_grouped

HOOKED: Final = "_old_forward"
"""Where accelerate's hooks keep a module's own forward."""


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
    """

    def __init__(self, name: str, module: nn.Module, shift: Shift, read: Callable[[], Tensor] | None = None) -> None:
        self.name, self.module, self.shift = name, module, shift
        module.add_module(SLOT, shift)
        # accelerate brings an offloaded weight in and then calls the forward that it has put aside.
        attribute = HOOKED if HOOKED in module.__dict__ else "forward"
        self._before = module.__dict__.get(attribute)
        self._forward = MethodType(_shifted_forward, module)
        setattr(module, attribute, self._forward)
        self._dropped = _Dropped(module, read) if read is not None else None
        if isinstance(shift, SpectralShift) and shift.whole:
            module.__dict__["_apply"] = self._apply

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast the layer, as its own `_apply`: the dropped weight stays dropped, unless it is cast to half.

        Two products of rounded factors are not W to half precision, so the layer goes over to the additive form then.
        """
        shift = cast("SpectralShift", self.shift)
        if fn(cast("Tensor", self.module.weight).new_empty(0)).dtype in HALF and shift.whole:
            if self._dropped is not None:
                self._dropped.fill()
            shift.become_additive(self.module)
        if self._dropped is not None:
            self._dropped.shrink()
        type(self.module)._apply(self.module, fn, recurse)
        if self._dropped is not None:
            self._dropped.expand()
        return self.module

    def _attribute(self) -> str:
        """Return where the forward is now: hooks may have come or gone."""
        for attribute in ("forward", HOOKED):
            if self.module.__dict__.get(attribute) is self._forward:
                return attribute
        raise AttachError(
            f"{self.name}: the layer's forward was replaced after the delta was attached",
            fix="undo what replaced it, then detach",
        )

    def check(self, *, force: bool = False) -> None:  # noqa: ARG002
        """Check that the layer's forward is where it was put, or where hooks have moved it."""
        self._attribute()

    def restore(self) -> None:
        """Let the layer be what it was."""
        attribute, own = self._attribute(), MethodType(type(self.module).forward, self.module)
        if attribute == "forward" and self._before in (None, own):
            delattr(self.module, attribute)
        else:
            setattr(self.module, attribute, self._before or own)
        self.module.__dict__.pop("_apply", None)
        if self._dropped is not None:
            self._dropped.fill()
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
            state[f"{prefix}weight"] = read().to(cast("Tensor", module.weight).dtype)

        self.hook = module.register_state_dict_post_hook(show)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's parameter; moves may put another one in its place."""
        return cast("nn.Parameter", self.module.weight)

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
    if is_grouped(module):
        return WholeShift(place, module, trainable=trainable)
    return SpectralShift(place, module, exact=exact, trainable=trainable)


def _shifted_forward(self: nn.Module, x: Tensor, *args: Any) -> Tensor:
    # Not called as a module: hooks would move the layer that it is given.
    return cast("Shift", getattr(self, SLOT)).forward(self, x, *args)
