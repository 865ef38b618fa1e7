"""A claim of the paper beside what was measured, and how one becomes agreed, differing or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Literal

from svdiff_train.evaluate.statistics import Interval, mean_interval

Verdict = Literal["agrees", "differs", "undecided", "not measured"]


SHARE: Final = (0.0, 1.0)
"""What a share can be."""


@dataclass(frozen=True)
class Claim:
    """One line of the report's first table.

    Attributes:
        where: section or figure of the paper.
        claim: what the paper says.
        measured: what was found, in words and numbers.
        verdict: which of the two it is.
    """

    where: str
    claim: str
    measured: str
    verdict: Verdict


def higher(values: Sequence[float], than: float = 0.0) -> Verdict:
    """Judge "the mean is higher than …" by its 95 % interval."""
    if len(values) < 2:
        return "not measured"
    low, high = _ends(values)
    if low > than:
        return "agrees"
    return "differs" if high < than else "undecided"


def similar(values: Sequence[float], margin: float) -> Verdict:
    """Judge "the mean difference is nothing": its 95 % interval lies within the margin, or beyond it."""
    if len(values) < 2:
        return "not measured"
    low, high = _ends(values)
    if -margin < low and high < margin:
        return "agrees"
    return "differs" if low > margin or high < -margin else "undecided"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the 95 % interval of at least two values."""
    found = mean_interval(values)
    return ends(found)


def ends(found: Interval) -> tuple[float, float]:
    """Return both ends of an interval; what a single value leaves open lies at infinity."""
    return -inf if found.low is None else found.low, inf if found.high is None else found.high


def all_of(*verdicts: Verdict) -> Verdict:
    """Judge a claim of several parts: it differs where one part does, and agrees where all do."""
    for worst in ("not measured", "differs", "undecided"):
        if worst in verdicts:
            return worst
    return "agrees"


def shown(values: Sequence[float], digits: int = 3, *, within: tuple[float, float] = (-inf, inf)) -> str:
    """Return a mean with its 95 % interval, cut to what values can be, or a dash."""
    if not values:
        return "–"
    found = mean_interval(values)
    if found.low is not None and found.high is not None:
        found = replace(found, low=max(found.low, within[0]), high=min(found.high, within[1]))
    return interval_shown(found, digits)


def interval_shown(found: Interval, digits: int = 3) -> str:
    """Return an interval as a text."""
    if found.low is None:
        return f"{found.mean:.{digits}f}"
    low, high = ends(found)
    return f"{found.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
