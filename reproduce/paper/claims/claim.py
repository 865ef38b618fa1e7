"""What a claim of the paper is: its measure, margin, pairing and looks, all fixed before its cells are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from reproduce.paper.cell import Cell

Numbers = Mapping[str, Any]
Group = tuple[str, ...]
"""Names of the subjects of a unit, or of its picture."""

Kind = Literal["higher", "similar", "exact"]
Detector = Literal["class", "whole", "half"]
"""Which way of telling subjects apart a claim stands on; `sight_check` says what each is."""


@dataclass(frozen=True)
class Unit:
    """One paired comparison: everything in it has the same subjects, seed, prompts and noise.

    Attributes:
        group: its subjects, or its picture.
        seed: of its trainings.
        cells: what is measured, by the part that it plays.
    """

    group: Group
    seed: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Part:
    """One difference that a claim stands on.

    Attributes:
        says: what is measured, in words.
        value: of a unit, from the numbers of its cells by the part that they play.
        margin: of equality. "higher" agrees if the interval lies above 0, and differs if it lies below the margin;
            "similar" agrees within ± margin, and differs beyond; "exact" is a count, and agrees from the margin on.
        kind: which of the three.
        grain: the least that a unit's value can change by.
    """

    says: str
    value: Callable[[Mapping[str, Numbers]], float]
    margin: float
    kind: Kind = "higher"
    grain: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One row of the report's first table.

    Attributes:
        name: a word or two, for links.
        letter: of the experiment that it belongs to.
        where: section or figure of the paper.
        says: the paper's words, in short.
        pairing: what the two sides of a unit have in common.
        parts: it agrees if all agree, and differs if one differs.
        groups: subjects or pictures, in the order in which units take them; the seed rises after the last.
        unit: makes a unit of a group and a seed.
        looks: how many units there are when it is judged.
        detector: how subjects must be told apart, if at all.
    """

    name: str
    letter: str
    where: str
    says: str
    pairing: str
    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    unit: Callable[[Group, int], Mapping[str, Cell]]
    looks: tuple[int, ...]
    detector: Detector | None = None

    def units(self, count: int) -> tuple[Unit, ...]:
        """Return the first units: every group with seed 0, then with seed 1, and so on."""
        return self._units[:count]

    @cached_property
    def _units(self) -> tuple[Unit, ...]:
        found = []
        for number in range(self.looks[-1] if self.groups else 0):
            seed, index = divmod(number, len(self.groups))
            group = self.groups[index]
            found.append(Unit(group, seed, self.unit(group, seed)))
        return tuple(found)

    def cells(self, look: int) -> dict[tuple[str, str], Cell]:
        """Return what must be measured for a look, by experiment and name."""
        return {cell.place: cell for unit in self.units(self.looks[look]) for cell in unit.cells.values()}
