"""The section of one claim on its experiment's page: parts, plot, and the pictures to compare."""

from __future__ import annotations

from pathlib import Path

from reproduce.paper.cell import Cell
from reproduce.paper.claims.claim import Claim
from reproduce.paper.claims.verdict import Find, Judged, units_to_decide
from reproduce.paper.planner import trainings
from reproduce.paper.plots import differences

from .text import interval_shown, part_shown, picture, rule_shown, table

SHOWN_UNITS = 4
"""How many units of a claim have their pictures on its page."""


def claim_section(judged: Judged, out: Path, find: Find) -> list[str]:
    """Return a claim's part of a page, and draw its plot."""
    claim = judged.claim
    lines = [
        f"## {claim.name}",
        "",
        f"*{claim.where}:* {claim.says}",
        "",
        f"**{judged.verdict}** ({rule_shown(judged)})",
        "",
    ]
    more = more_trainings(judged)
    lines += [more, ""] if more else []
    lines += table(
        ["measure", "difference", "margin", "verdict"],
        [[one.part.says, interval_shown(one.interval), f"{one.part.margin:g}", one.verdict] for one in judged.parts],
    )
    if len(judged.parts) > 1 and judged.verdict == "differs":
        lines += ["Of a part that differs it is the wider interval of its share of the chance of error.", ""]
    plot = out / "plots" / f"{claim.name}.png"
    differences(judged, plot)
    if plot.exists() and judged.parts:
        lines += [f"![{claim.name}](../plots/{plot.name})", ""]
    return [*lines, f"Pairs: {claim.pairing}.", "", *_pictures(claim, out, find)]


def more_trainings(judged: Judged) -> str:
    """Return what would decide an undecided claim, in words; nothing for others."""
    if judged.verdict != "undecided":
        return ""
    units = units_to_decide(judged)
    if units is None:
        return "At the means seen no number of trainings would decide it."
    claim = judged.claim
    all_units = claim.looks[-1]
    each = len(trainings(claim.cells(len(claim.looks) - 1).values())) / all_units
    return f"At the means and spreads seen {units} units would decide it: about {round(units * each)} trainings in all."


def _pictures(claim: Claim, out: Path, find: Find) -> list[str]:
    """Return a table of the first units' pictures: the same subjects, seeds and noise in each row."""
    units = [unit for unit in claim.units(SHOWN_UNITS) if unit.group]
    columns = [
        (role, label) for role, cell in units[0].cells.items() for label in _labels(out, cell)
    ] if units else []  # fmt: skip
    if not columns:
        return []
    rows = [
        [" and ".join(unit.group), *(picture(out, unit.cells[role], label, find) for role, label in columns)]
        for unit in units
    ]
    return table(["", *(role if role == label else f"{role}, {label}" for role, label in columns)], rows)


def _labels(out: Path, cell: Cell) -> list[str]:
    """Return which rows of pictures a cell has kept."""
    folder = out / "pictures" / cell.experiment
    return sorted(path.name.removeprefix(f"{cell.name}.")[:-4] for path in folder.glob(f"{cell.name}.*.png"))


def summary(judged: Judged) -> str:
    """Return what was measured, in one cell of the first table."""
    parts = "; ".join(part_shown(part) for part in judged.parts)
    if judged.verdict == "left out":
        return "the judge cannot tell the subjects apart"
    more = more_trainings(judged)
    return f"{parts}. {more}" if more else parts or "–"
