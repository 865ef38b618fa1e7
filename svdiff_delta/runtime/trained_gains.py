"""Keep the gains of a model's layers in training for as long as one forward of it, and its way back, last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .joint_gains import MapCache, joint_gains
from .live_weight import pickle_refusal
from .watched_operations import plain

if TYPE_CHECKING:
    from .shift import Shift


class Part(NamedTuple):
    """The gains of one layer, with what they were made of.

    Attributes:
        gains: (R,).
        leaf: what is trained.
        version: how often that had been written to.
    """

    gains: Tensor
    leaf: Tensor
    version: int


class TrainedGains:
    """The gains of one model's layers in training, computed together when its forward begins.

    They hold until the forward ends, and for what is computed again on the way back. A layer that is called at any
    other time, in a compiled model, or where they do not fit computes its own (`Shift.gains`): they are the same.

    Args:
        shifts: the model's layers; those on singular values first, as `Handle.flat_parameters` has them.
    """

    def __init__(self, shifts: Sequence[Shift]) -> None:
        self._shifts = tuple(sorted(shifts, key=lambda shift: shift.parameter.kind != "spectral"))
        self._maps = MapCache()
        self._parts: dict[Shift, Part] = {}
        self._open = False
        self._ends: list[Callable[[], None]] = []

    def watch(self, model: nn.Module) -> None:
        """Compute gains at each forward of the model from now on."""
        for shift in self._shifts:
            shift.together = self
        self._ends.append(model.register_forward_pre_hook(self._begin).remove)
        self._ends.append(model.register_forward_hook(self._end, always_call=True).remove)

    def stop(self) -> None:
        """Let every layer compute its own gains again; a hook that was left behind does nothing then."""
        for shift in self._shifts:
            shift.together = None
        self._shifts, self._parts, self._open = (), {}, False
        for end in self._ends:
            end()

    def _begin(self, model: nn.Module, args: object) -> None:  # noqa: ARG002
        if torch.compiler.is_compiling() or not self._shifts:
            return
        self._parts = self._computed()
        self._open = True

    def _computed(self) -> dict[Shift, Part]:
        if plain() or not all(shift.enabled for shift in self._shifts):
            return {}
        joint = self._maps.of(self._shifts)
        if joint is None:
            return {}
        parts = joint_gains(joint, self._shifts)
        return {
            shift: Part(part, shift.leaf, version(shift.leaf)) for shift, part in zip(self._shifts, parts, strict=True)
        }

    def _end(self, *_: object) -> None:
        self._open = False

    def part(self, shift: Shift) -> Tensor | None:
        """Return a layer's gains of this forward, or of the one whose way back this is; None if there are none."""
        if not self._open and not going_back():
            return None
        part = self._parts.get(shift)
        if part is None or part.leaf is not shift.leaf or part.version != version(part.leaf):
            return None
        without = part.leaf.requires_grad and torch.is_grad_enabled() and not part.gains.requires_grad
        if without or part.gains.is_inference() is not torch.is_inference_mode_enabled():
            return None
        return part.gains

    def __deepcopy__(self, memo: object) -> TrainedGains:
        """Return one without layers: those of a copy of the model compute their own gains."""
        return TrainedGains(())

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Refuse to be pickled with a model that has a delta on it, of whose hooks this is one."""
        if self._shifts:
            raise pickle_refusal()
        return TrainedGains, ((),)


def going_back() -> bool:
    """Tell whether this runs on a way back, as forwards of gradient checkpointing do."""
    return torch._C._current_graph_task_id() >= 0


def version(leaf: Tensor) -> int:
    """Return how often a tensor was written to; 0 where torch does not count that."""
    return 0 if leaf.is_inference() else leaf._version
