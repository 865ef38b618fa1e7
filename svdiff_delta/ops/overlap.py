"""Show how two deltas get in each other's way, in all and block by block, before they are added."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from svdiff_delta.format.delta import Delta

from .blocks import Block, blocks_of
from .combine import combine_parameters
from .stats import wide


@dataclass(frozen=True)
class Meeting:
    """How two deltas lie to each other in what both shift.

    Attributes:
        cosine: of their values as one vector; None where one of them does not move.
        conflicts: the share of coordinates that both move, in opposite directions; None where none is moved by both.
        numbers: the length of what both shift.
    """

    cosine: float | None
    conflicts: float | None
    numbers: int


@dataclass(frozen=True)
class Overlap:
    """How two deltas get in each other's way.

    Attributes:
        whole: in all that both shift.
        blocks: in each block that both shift, in the order of the forward pass.
        shared: the share of the energy of both, Σ δ², that lies in parameters which both shift; None where both are 0.
    """

    whole: Meeting
    blocks: Mapping[Block, Meeting]
    shared: float | None


@dataclass
class _Sums:
    """Sums over coordinates: products and squares in float64, and counts."""

    dot: float = 0.0
    a: float = 0.0
    b: float = 0.0
    both: int = 0
    against: int = 0
    numbers: int = 0

    def meeting(self) -> Meeting:
        length = float(np.sqrt(self.a) * np.sqrt(self.b))
        return Meeting(
            self.dot / length if length else None, self.against / self.both if self.both else None, self.numbers
        )


def overlap(a: Delta, b: Delta) -> Overlap:
    """Return how two deltas get in each other's way; a parameter that only one shifts counts in `shared` alone.

    Raises:
        BaseMismatchError: they were made for different bases.
        TensorError: a value is not valid.
    """
    combine_parameters([a, b])
    common = blocks_of(name for name in a if name in b)
    found = {block: _sums(a, b, names) for block, names in common.items()}
    whole = _Sums()
    for each in found.values():
        for field in vars(whole):
            setattr(whole, field, getattr(whole, field) + getattr(each, field))
    energy = _energy(a) + _energy(b)
    shared = (whole.a + whole.b) / energy if energy else None
    return Overlap(whole.meeting(), {block: each.meeting() for block, each in found.items()}, shared)


def _sums(a: Delta, b: Delta, names: Iterable[str]) -> _Sums:
    names = list(names)
    x, y = (np.concatenate([wide(delta, name) for name in names]) for delta in (a, b))
    product = np.sign(x) * np.sign(y)
    both = int(np.count_nonzero(product))
    return _Sums(float(x @ y), float(x @ x), float(y @ y), both, int((product < 0).sum()), x.size)


def _energy(delta: Delta) -> float:
    return sum(float(values @ values) for values in (wide(delta, name) for name in delta))
