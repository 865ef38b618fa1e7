"""A stage of the search, and what its cells and rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.sight import SEAM
from reproduce.paper.subjects import slug

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One part of the search; later ones use what earlier ones chose.

    Attributes:
        title: what is chosen.
        tried: what is tried, in words.
        rule: how it is chosen, in words.
        cells: what is measured, by label, given earlier choices.
        choose: the rule.
        repeats: with what labels of the same thing end, over which the rule takes the mean.
    """

    title: str
    tried: tuple[str, ...]
    rule: str
    cells: Callable[[Choices], Mapping[str, Cell]]
    choose: Callable[[Choices, Mapping[str, Numbers]], Choices]
    repeats: tuple[str, ...] = ()

    def thing(self, label: str) -> str:
        """Return what is tried, of the label of one of its cells."""
        endings = (f" {one}" for one in self.repeats)
        return next((label.removesuffix(one) for one in endings if label.endswith(one)), label)


def label_of(*parts: object) -> str:
    """Return what a thing that is tried is called."""
    return " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)


def cell_name(*parts: object) -> str:
    """Return the same as the name of a file."""
    return slug(label_of(*parts)).replace(",", "").replace("'", "")


def mean_score(numbers: Numbers) -> float:
    """Return the mean of the lesser likenesses of two subjects to a half of the picture each."""
    return fmean(numbers["positive"]["score"])


def stitched(judged: Numbers) -> float:
    """Return the share of pictures whose ground jumps in the middle."""
    return fmean(value >= SEAM for value in judged["seam"])
