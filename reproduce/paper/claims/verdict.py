"""How a claim is judged: part by part, look after look, each part until it is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import NormalDist
from typing import Literal

from reproduce.paper.cell import Cell
from reproduce.paper.spending import ALPHA, error_of_mean, nominal, repeated_interval
from svdiff_train.evaluate.statistics import Interval

from .claim import Claim, Numbers, Part

Verdict = Literal["agrees", "differs", "undecided", "left out", "not measured"]
Find = Callable[[Cell], Numbers | None]
"""Returns the numbers of a cell, or None if it is not measured."""


@dataclass(frozen=True)
class PartJudged:
    """A part after some looks.

    Attributes:
        part: of the claim.
        interval: at the last look that was taken: the one that decided, if one did.
        verdict: of the part.
        values: of the units, at that look.
    """

    part: Part
    interval: Interval
    verdict: Verdict
    values: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """A claim after some looks.

    Attributes:
        claim: which.
        looks: how many were taken.
        parts: each at its last look; empty before the first.
        verdict: of the whole.
    """

    claim: Claim
    looks: int
    parts: tuple[PartJudged, ...]
    verdict: Verdict


def judge(claim: Claim, looks: int, find: Find) -> Judged:
    """Judge a claim by its first looks, all of whose cells are measured.

    A part that has been decided at one look stays decided: all intervals of all looks hold together, with a chance of
    95 %. Looks after the claim is decided are not taken, even where their cells are there.
    """
    parts: tuple[PartJudged, ...] = ()
    for look in range(looks):
        parts = tuple(
            one
            if (one := _at(parts, index)) is not None and one.verdict != "undecided"
            else _look(claim, index, look, find)
            for index in range(len(claim.parts))
        )
        verdict = _whole([part.verdict for part in parts])
        if verdict != "undecided":
            return Judged(claim, look + 1, parts, verdict)
    return Judged(claim, looks, parts, "undecided" if looks else "not measured")


def _at(parts: Sequence[PartJudged], index: int) -> PartJudged | None:
    return parts[index] if parts else None


def _whole(verdicts: Sequence[Verdict]) -> Verdict:
    if "differs" in verdicts:
        return "differs"
    return "undecided" if "undecided" in verdicts else "agrees"


def _look(claim: Claim, index: int, look: int, find: Find) -> PartJudged:
    """Judge one part at one look."""
    part = claim.parts[index]
    values = part_values(claim, part, claim.looks[look], find)
    if part.kind == "exact":
        verdict: Verdict = "agrees" if values[0] >= part.margin else "differs"
        return PartJudged(part, Interval(values[0], None, None, 1), verdict, values)
    groups = [unit.group for unit in claim.units(len(values))]
    agreeing = repeated_interval(values, groups, claim.looks, look, grain=part.grain)
    # One part of several is enough to differ: that chance of error is shared out among them.
    differing = repeated_interval(values, groups, claim.looks, look, alpha=ALPHA / len(claim.parts), grain=part.grain)
    verdict = _decide(part, agreeing, differing)
    return PartJudged(part, differing if verdict == "differs" else agreeing, verdict, values)


def part_values(claim: Claim, part: Part, count: int, find: Find) -> tuple[float, ...]:
    """Return a part's value in each of the first units."""
    found = []
    for unit in claim.units(count):
        numbers = {role: find(cell) for role, cell in unit.cells.items()}
        found.append(part.value({role: one for role, one in numbers.items() if one is not None}))
    return tuple(found)


def _decide(part: Part, agreeing: Interval, differing: Interval) -> Verdict:
    low, high = ends(agreeing)
    far_low, far_high = ends(differing)
    if part.kind == "higher":
        return "agrees" if low > 0 else "differs" if far_high < part.margin else "undecided"
    if -part.margin < low and high < part.margin:
        return "agrees"
    return "differs" if far_low > part.margin or far_high < -part.margin else "undecided"


def ends(found: Interval) -> tuple[float, float]:
    """Return both ends of an interval; what a single value leaves open lies at infinity."""
    return -inf if found.low is None else found.low, inf if found.high is None else found.high


def units_to_decide(judged: Judged) -> int | None:
    """Return how many units would decide an undecided claim at the means and spreads seen; None if none ever would."""
    found = [_units(judged.claim, part) for part in judged.parts if part.verdict == "undecided"]
    if not found or any(count is None for count in found):
        return None
    return max(count for count in found if count is not None)


def _units(claim: Claim, judged: PartJudged) -> int | None:
    """Return the n from which the bound of the last look reaches no further than the nearest that decides.

    Differing is judged with the chance of error of one part of several, as at the looks.
    """
    mean, margin, count = judged.interval.mean, judged.part.margin, len(judged.values)
    groups = [unit.group for unit in claim.units(count)]
    spread = error_of_mean(judged.values, groups, judged.part.grain).size * sqrt(count)
    if judged.part.kind == "higher":
        agreeing, differing = mean, margin - mean
    else:
        agreeing, differing = margin - abs(mean), abs(mean) - margin
    needed = [
        ceil((NormalDist().inv_cdf(1 - nominal(claim.looks, alpha)[-1] / 2) * spread / room) ** 2)
        for room, alpha in ((agreeing, ALPHA), (differing, ALPHA / len(claim.parts)))
        if room > 0
    ]
    return max(count + 1, min(needed)) if needed else None
