"""Compute the gains of several layers in training by one set of operations, with gradients to what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        owners = [numbers[id(shift.leaf)] for shift in shifts]
        total = sum(leaf.numel() for leaf in leaves)
        begins = _begins([leaf.numel() for leaf in leaves])
        spread = torch.cat([_places(shift, begins[owner], total) for shift, owner in zip(shifts, owners, strict=True)])
        starts = _begins([floor.numel() for floor in floors])
        pick = torch.cat(
            [
                start
                + (torch.arange(len(shift.floor), device=shift.floor.device) if shift.pick is None else shift.pick)
                for shift, start in zip(shifts, starts, strict=True)
            ]
        )
        return JointMap(
            leaves=tuple(leaves),
            spread=_unless_identity(spread, total),
            floor=torch.cat(floors),
            pick=_unless_identity(pick, len(spread)),
            offset=torch.cat([shift.offset for shift in shifts]),
            slope=torch.cat([shift.slope for shift in shifts]),
            lengths=tuple(len(shift.offset) for shift in shifts),
            owners=tuple(owners),
        )

    def full(self) -> Tensor:
        """Return all δ (D,), with every tied and null entry in its place."""
        leaves = list(self.leaves)
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
    return gains.split(joint.lengths)


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
        parts = gains.split(joint.lengths)
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


def _begins(sizes: Sequence[int]) -> list[int]:
    begins = [0]
    for size in sizes:
        begins.append(begins[-1] + size)
    return begins


def _places(shift: Shift, begin: int, nowhere: int) -> Tensor:
    """Return where each δ of a layer is among the numbers of all leaves, (size,)."""
    if shift.spread is None:
        return torch.arange(len(shift.floor), device=shift.floor.device) + (begin + shift.start_at)
    return torch.where(shift.spread < 0, nowhere, shift.spread + (begin + shift.start_at))


def _unless_identity(index: Tensor, count: int) -> Tensor | None:
    same = len(index) == count and torch.equal(index, torch.arange(count, device=index.device))
    return None if same else index
