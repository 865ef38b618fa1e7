"""Hold δ of experts whose weights are stacked in one parameter, and show their layer W + ΔW of all of them."""

from __future__ import annotations

from threading import Lock
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.experts import ExpertWeight, rows_of, stacks
from svdiff_delta.errors import AttachError

from .live_weight import SLOT, own_class, watch
from .patched_layers import LivePatch
from .shift import Shift

_LOCK: Final = Lock()


class StackedShift(nn.Module):
    """The shifts of an experts layer, each of one expert's weight: a slice of a stacked parameter, or a part of it."""

    stacked = True

    def __init__(self) -> None:
        super().__init__()
        self._experts: dict[str, dict[int, list[ExpertWeight]]] = {}

    @property
    def name(self) -> str:
        """The first parameter that is shifted, for errors."""
        return min(cast("Shift", shift).name for shift in self._modules.values())

    @property
    def empty(self) -> bool:
        """True if no expert is shifted any more."""
        return not self._modules

    def put(self, module: ExpertWeight, shift: Shift) -> None:
        """Let a shift be that of an expert's weight."""
        self.add_module(_key(module), shift)
        here = self._experts.setdefault(module.attribute, {}).setdefault(module.place.number, [])
        here.append(module)
        here.sort(key=lambda each: each.place.part)

    def take(self, module: ExpertWeight) -> None:
        """Let an expert's weight have no shift; a second call does nothing."""
        if self._modules.pop(_key(module), None) is None:
            return
        numbers = self._experts[module.attribute]
        here = [each for each in numbers.pop(module.place.number) if each is not module]
        if here:
            numbers[module.place.number] = here
        elif not numbers:
            del self._experts[module.attribute]

    def shift_of(self, module: ExpertWeight) -> Shift | None:
        """Return the shift of an expert's weight."""
        return cast("Shift | None", self._modules.get(_key(module)))

    def holds(self, attribute: str) -> bool:
        """Tell whether a stacked parameter has a shift."""
        return attribute in self._experts

    def read_weight(self, layer: nn.Module, attribute: str, number: int | None = None) -> Tensor:
        """Return W + ΔW of all experts of a layer in the stack's shape and dtype, or of one, in that of its slice.

        Which experts compute is decided by the tokens, so whoever reads one counts as a reader of all.

        Raises:
            InputError: every sample has a δ of its own, which one weight cannot have.
        """
        stack = cast("Tensor", layer._parameters[attribute])
        for key, shift in cast("dict[str, Shift]", self._modules).items():
            if shift.check is not None and key.startswith(f"{attribute}:"):
                shift.check.read(shift)
        if number is not None:
            return self._slice(stack, attribute, number)
        return torch.stack([self._slice(stack, attribute, each) for each in range(len(stack))])

    def _slice(self, stack: Tensor, attribute: str, number: int) -> Tensor:
        """Return W + ΔW of one expert; rows that nothing shifts are the stack's own."""
        pieces, start, whole = list[Tensor](), 0, stack[number]
        for module in self._experts[attribute].get(number, ()):
            first, last = rows_of(stack, module.place)
            pieces += [whole[start:first], cast("Shift", self._modules[_key(module)]).read_weight(module)]
            start = last
        pieces = [piece for piece in (*pieces, whole[start:]) if len(piece)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _key(module: ExpertWeight) -> str:
    return f"{module.attribute}:{module.place.number}:{module.place.part}"


class StackedPatch(LivePatch):
    """One expert's weight of a layer that reads W + ΔW of its experts; the layer's own forward computes."""

    module: ExpertWeight

    @property
    def shift(self) -> Shift:
        """The module that computes W + ΔW."""
        return cast("Shift", stacked_shift(self.module.owner).shift_of(self.module))

    def put(self) -> None:
        """Let whoever reads the stacked parameter read W + ΔW of this expert."""
        shift = self._make()
        with _LOCK:
            self._begun, owner = True, self.module.owner
            found = owner._modules.get(SLOT)
            if found is None:
                found = StackedShift()
                owner.add_module(SLOT, found)
            cast("StackedShift", found).put(self.module, shift)
            watch(owner, tuple(attribute for attribute, _ in stacks(owner)))

    def check(self, *, force: bool = False) -> None:
        """Accept every state: the weight was never written to."""

    def restore(self) -> None:
        """Let the expert's weight be what it was; the last one gives the layer back its class."""
        with _LOCK:
            owner = self.module.owner
            if not self._begun or SLOT not in owner._modules:
                return
            found = stacked_shift(owner)
            found.take(self.module)
            if found.empty:
                owner.__class__ = own_class(owner)
                owner._modules.pop(SLOT, None)
            self._begun = False


def stacked_shift(owner: nn.Module) -> StackedShift:
    """Return what holds δ of an experts layer's weights.

    Raises:
        AttachError: it has none.
    """
    found: Any = owner._modules.get(SLOT)
    if found is None:
        raise AttachError("the delta on this layer is off now", fix="attach it again")
    return cast("StackedShift", found)
