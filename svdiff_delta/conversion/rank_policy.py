"""Choose how many singular values a low-rank copy keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.errors import InputError


@dataclass(frozen=True)
class Ranking:
    """The rank of each weight's copy, given one way or the other.

    Attributes:
        rank: as it is.
        energy: the least share of Σ Δσ² of each weight, in (0, 1].
        max_rank: the most ranks for that.
    """

    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None

    def count(self, squares: NDArray[np.float64]) -> int:
        """Return how many of these Δσ², which are descending, to keep: never one that is 0."""
        alive = int(np.count_nonzero(squares))
        if self.rank is not None:
            return min(alive, self.rank)
        most = alive if self.max_rank is None else min(alive, self.max_rank)
        if self.energy is None or self.energy == 1.0:
            return most
        sums = np.cumsum(squares)
        return min(most, int(np.searchsorted(sums, self.energy * sums[-1])) + 1)

    def most(self, size: int) -> int:
        """Return the largest rank that a weight with this many singular values may have."""
        return self.rank or self.max_rank or size

    def within(self, groups: int) -> Ranking:
        """Return how many to keep of each group of a weight, so that all of them together keep to this."""
        rank, most = (None if value is None else value // groups for value in (self.rank, self.max_rank))
        return Ranking(rank, self.energy, most)

    def arguments(self) -> dict[str, int | float]:
        """Return what was given, as a lineage records it."""
        given = {"rank": self.rank, "energy": self.energy, "max_rank": self.max_rank}
        return {key: value for key, value in given.items() if value is not None}


def make_ranking(rank: int | None, energy: float | None, max_rank: int | None) -> Ranking | None:
    """Return how many singular values to keep; None if nothing says it.

    Raises:
        InputError: a number out of range, or two that contradict each other.
    """
    for name, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None and value < 1:
            raise InputError(f"`{name}` must be at least 1, is {value}")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise InputError(f"`energy` must be within (0, 1], is {energy}")
    if rank is not None and energy is not None:
        raise InputError(
            "`rank` and `energy` contradict each other", fix="give one of them, or `energy` with `max_rank`"
        )
    if max_rank is not None and energy is None:
        raise InputError("`max_rank` says nothing without `energy`", fix="give `rank` instead")
    return None if rank is None and energy is None else Ranking(rank, energy, max_rank)
