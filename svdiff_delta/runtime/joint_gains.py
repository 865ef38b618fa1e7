"""Compute the gains of several layers in training by one set of operations, with gradients to what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import is_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .model_locks import ordinary

if TYPE_CHECKING:
    from .shift import Shift


@dataclass(frozen=True, eq=False)
class JointMap:
    """The map from trained numbers in a row (F,) over all δ (D,) to the gains of several layers in a row (G,).

    `gain = offset + slope ⊙ max(δ, floor)[pick]`, where δ is 0 for null entries and equal within a tied run.

    Attributes:
        leaves: what is trained, F numbers in all.
        spread: (D,) which number each δ is, F for none; None if each is its own.
        floor: (D,) −σ; −∞ where δ is not clipped.
        pick: (G,) which δ each gain follows; None if each follows its own.
        offset: (G,).
        slope: (G,).
        lengths: how many gains each layer has.
        owners: for each layer, which of the leaves it reads.
    """

    leaves: tuple[nn.Parameter, ...]
    spread: Tensor | None
    floor: Tensor
    pick: Tensor | None
    offset: Tensor
    slope: Tensor
    lengths: tuple[int, ...]
    owners: tuple[int, ...]

    @staticmethod
    @torch.no_grad()
    def of(shifts: Sequence[Shift]) -> JointMap | None:
        """Return the map of several layers in training; None if they are on several devices or of several dtypes."""
        leaves = list({id(shift.leaf): shift.leaf for shift in shifts}.values())
        floors = [shift.floor for shift in shifts]
        if len({(each.device, each.dtype) for each in (*leaves, *floors)}) > 1:
            return None
        numbers = {id(leaf): index for index, leaf in enumerate(leaves)}
        owners = tuple(numbers[id(shift.leaf)] for shift in shifts)
        return JointMap(
            leaves=tuple(leaves),
            spread=_spread(shifts, leaves, owners),
            floor=torch.cat(floors),
            pick=_pick(shifts),
            offset=torch.cat([shift.offset for shift in shifts]),
            slope=torch.cat([shift.slope for shift in shifts]),
            lengths=tuple(len(shift.offset) for shift in shifts),
            owners=owners,
        )

    def full(self) -> Tensor:
        """Return all δ (D,), with every tied and null entry in its place."""
        leaves = list[Tensor](self.leaves)
        if self.spread is None:
            return leaves[0] if len(leaves) == 1 else torch.cat(leaves)
        return torch.cat([*leaves, leaves[0].new_zeros(1)]).index_select(0, self.spread)

    def gains(self, full: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gains (G,) for δ (D,), and which δ are so low that they do nothing, (D,)."""
        dead = full <= self.floor
        change = torch.where(dead, self.floor, full)
        picked = change if self.pick is None else change.index_select(0, self.pick)
        return self.offset + self.slope * picked, dead

    def back(self, grads: Sequence[Tensor | None], dead: Tensor, *, revive: bool) -> list[Tensor]:
        """Return the gradients by the leaves.

        Args:
            grads: by the gains of each layer; None where the loss does not depend on them.
            dead: which δ did nothing, (D,).
            revive: whether the gradients of these pass where they would bring δ back.
        """
        given = zip(grads, self.lengths, strict=True)
        grad = torch.cat([self.slope.new_zeros(size) if each is None else each for each, size in given]) * self.slope
        if self.pick is not None:  # at most two gains follow one δ, so the order of this sum does not matter
            grad = grad.new_zeros(len(dead)).index_add(0, self.pick, grad)
        grad = grad.masked_fill(dead & ~(grad < 0) if revive else dead, 0.0)
        sizes = [leaf.numel() for leaf in self.leaves]
        if self.spread is not None:
            grad = grad.new_zeros(sum(sizes) + 1).index_put((self.spread,), grad, accumulate=True)[:-1]
        return [grad] if len(sizes) == 1 else list(grad.split(sizes))


class MapCache:
    """A joint map that is made again whenever something that it depends on was put in the place of another."""

    def __init__(self) -> None:
        self._seen: list[Any] = []
        self._map: JointMap | None = None

    def of(self, shifts: Sequence[Shift]) -> JointMap | None:
        """Return the map of these layers; None as `JointMap.of`."""
        now = [each for shift in shifts for each in (shift.leaf, *map(shift._buffers.get, PARTS))]
        # A move or a cast of a parameter changes it in place, and the buffers beside it are others then.
        if len(now) != len(self._seen) or not all(map(is_, now, self._seen)):
            self._seen, self._map = now, ordinary(JointMap.of)(shifts)
        return self._map

    def __deepcopy__(self, memo: object) -> MapCache:
        return MapCache()


PARTS = ("floor", "offset", "slope", "pick", "spread")
"""What a layer's map is made of."""


def joint_gains(joint: JointMap, shifts: Sequence[Shift]) -> tuple[Tensor, ...]:
    """Return the gains of each layer; gradients flow to the leaves, as often as somebody asks for them."""
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in joint.leaves):
        return cast("tuple[Tensor, ...]", _JointGains.apply(joint, tuple(shifts), *joint.leaves))  # type: ignore[no-untyped-call]
    gains, _ = joint.gains(joint.full())
    return cast("tuple[Tensor, ...]", gains.split(joint.lengths))


class _JointGains(torch.autograd.Function):
    """The gains of each layer from the leaves.

    Nothing is saved in the way that autograd saves: that would be let go of after one pass back, and several passes
    may go through one set of gains (of checkpoints that are reentrant, or of several losses). It also makes what a
    checkpoint counts the same whether a layer's gains came with the others' or alone.
    """

    @staticmethod
    def forward(ctx: Any, joint: JointMap, shifts: tuple[Shift, ...], *leaves: Tensor) -> tuple[Tensor, ...]:
        """Return the gains of each layer."""
        del leaves  # the map has them
        gains, ctx.dead = joint.gains(joint.full())
        ctx.joint, ctx.shifts, ctx.revive = joint, shifts, shifts[0].revive
        ctx.set_materialize_grads(False)
        parts = cast("tuple[Tensor, ...]", gains.split(joint.lengths))
        still = [part for part, owner in zip(parts, joint.owners, strict=True) if not ctx.needs_input_grad[2 + owner]]
        ctx.mark_non_differentiable(*still)
        return parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients by the leaves; None for one that no gradient has reached."""
        reached = set()
        for shift, owner, grad in zip(ctx.shifts, ctx.joint.owners, grads, strict=True):
            if grad is not None:
                shift.reached = True
                reached.add(owner)
        back = ctx.joint.back(grads, ctx.dead, revive=ctx.revive) if reached else [None] * len(ctx.joint.leaves)
        return None, None, *(grad if index in reached else None for index, grad in enumerate(back))


def _begins(sizes: Iterable[int]) -> list[int]:
    """Return where each of several rows begins if they stand one after another, and where the last one ends."""
    return [0, *accumulate(sizes)]


def _spread(shifts: Sequence[Shift], leaves: Sequence[Tensor], owners: Sequence[int]) -> Tensor | None:
    """Return which of the numbers of all leaves each δ is, (D,); None if each is its own, in order."""
    begins = _begins(leaf.numel() for leaf in leaves)
    starts = [begins[owner] + shift.start_at for shift, owner in zip(shifts, owners, strict=True)]
    if all(shift.spread is None for shift in shifts) and [*starts, begins[-1]] == _begins(map(_size, shifts)):
        return None
    spreads = [_count(shift) if shift.spread is None else shift.spread for shift in shifts]
    found = [torch.where(each < 0, begins[-1], each + start) for each, start in zip(spreads, starts, strict=True)]
    return torch.cat(found)


def _pick(shifts: Sequence[Shift]) -> Tensor | None:
    """Return which of the δ of all layers each gain follows, (G,); None if each follows its own."""
    if all(shift.pick is None for shift in shifts):
        return None
    picks = [_count(shift) if shift.pick is None else shift.pick for shift in shifts]
    return torch.cat([each + begin for each, begin in zip(picks, _begins(map(_size, shifts)), strict=False)])


def _size(shift: Shift) -> int:
    return len(shift.floor)


def _count(shift: Shift) -> Tensor:
    return torch.arange(_size(shift), device=shift.floor.device)
