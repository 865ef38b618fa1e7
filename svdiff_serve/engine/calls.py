"""Join calls of one model that pictures make at the same time, and share its result out to them again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

TIMES: Final = frozenset({"timestep", "t"})
"""Arguments that are one number for all rows, or one for each: joined, they are one for each."""

SHARED: Final = frozenset({"img_ids", "txt_ids"})
"""Arguments that have no row for each sample, as Flux.1's places of tokens."""

UNUSED: Final = frozenset({"generator"})
"""Arguments that the joined models take and do not use: an autoencoder that decodes draws nothing."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of one component that waits for others.

    Attributes:
        component: the component's name in its pipeline.
        method: "forward" or "decode".
        values: the arguments by name, in order.
        joins: whether it may be joined with others.
    """

    component: str
    method: str
    values: Mapping[str, Any]
    joins: bool

    @property
    def rows(self) -> int:
        """How many samples it has: the length of the first tensor that has more dimensions than a vector."""
        for value in tree_flatten(dict(self.values))[0]:
            if isinstance(value, Tensor) and value.ndim > 1:
                return int(value.shape[0])
        return 1


@dataclass(frozen=True)
class _Leaf:
    """One value within a call's arguments, and how it takes part when calls are joined."""

    name: str
    value: Any
    rows: int

    @property
    def kind(self) -> str:
        if self.name in UNUSED:
            return "unused"
        if not isinstance(self.value, Tensor):
            return "plain"
        if self.name in SHARED:
            return "shared"
        if self.name in TIMES and self.value.ndim <= 1:
            return "time"
        return "rows" if self.value.ndim and self.value.shape[0] == self.rows else "shared"

    def key(self) -> Hashable:
        """Return what must be the same in calls that are joined."""
        kind, value = self.kind, self.value
        if kind == "unused":
            return kind
        if kind == "plain":
            return kind, type(value), value if isinstance(value, Hashable) else id(value)
        shape = () if kind == "time" else tuple(value.shape[1:]) if kind == "rows" else tuple(value.shape)
        return kind, shape, value.dtype, value.device


def _leaves(call: Call) -> tuple[list[_Leaf], TreeSpec]:
    """Return the values of a call in order; those within a mapping or a list carry the argument's name."""
    rows = call.rows
    leaves = [_Leaf(name, each, rows) for name, value in call.values.items() for each in tree_flatten(value)[0]]
    return leaves, tree_flatten(dict(call.values))[1]


def key_of(call: Call) -> Hashable:
    """Return what calls have in common that one forward can compute."""
    if not call.joins:
        return id(call)
    leaves, spec = _leaves(call)
    return call.component, call.method, str(spec), tuple(leaf.key() for leaf in leaves)


def group(calls: Sequence[Call], largest: int) -> list[list[int]]:
    """Return the numbers of calls that are computed together, in the order of their first.

    Args:
        calls: what waits.
        largest: how many rows a batch may have; a single call may have more.
    """
    found: dict[Hashable, list[list[int]]] = {}
    for number, call in enumerate(calls):
        groups = found.setdefault(key_of(call), [])
        for members in groups:
            rows = sum(calls[each].rows for each in members)
            if rows + call.rows <= largest and _same_shared(calls[members[0]], call):
                members.append(number)
                break
        else:
            groups.append([number])
    return sorted((members for groups in found.values() for members in groups), key=lambda members: members[0])


def _same_shared(one: Call, other: Call) -> bool:
    """Tell whether tensors that have no row for each sample are the same."""
    pairs = zip(_leaves(one)[0], _leaves(other)[0], strict=True)
    return all(
        mine.value is theirs.value or torch.equal(mine.value, theirs.value)
        for mine, theirs in pairs
        if mine.kind == "shared"
    )


def join(calls: Sequence[Call]) -> dict[str, Any]:
    """Return the arguments of one call that computes several, whose keys are the same; of one, its own."""
    if len(calls) == 1:
        return dict(calls[0].values)
    columns = [_leaves(call) for call in calls]
    joined = [_joined([leaves[index] for leaves, _ in columns]) for index in range(len(columns[0][0]))]
    found: dict[str, Any] = tree_unflatten(joined, columns[0][1])
    return found


def _joined(leaves: Sequence[_Leaf]) -> Any:
    kind = leaves[0].kind
    if kind == "rows":
        return torch.cat([leaf.value for leaf in leaves])
    if kind == "time":
        return torch.cat([leaf.value.reshape(-1).expand(leaf.rows) for leaf in leaves])
    return leaves[0].value


def split(result: Any, rows: Sequence[int]) -> list[Any]:
    """Return the part of a result for each of the joined calls.

    Args:
        result: what the model returned: tensors in tuples, mappings or output classes.
        rows: how many samples each call has.
    """
    if len(rows) == 1:
        return [result]
    leaves, spec = tree_flatten(result)
    total, ends = sum(rows), list(accumulate(rows))

    def part(value: Any, start: int, stop: int) -> Any:
        # A copy, so that a picture that ends later does not keep the whole batch in memory.
        own = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == total
        return value[start:stop].clone() if own else value

    places = [(end - count, end) for end, count in zip(ends, rows, strict=True)]
    return [tree_unflatten([part(value, *place) for value in leaves], spec) for place in places]
