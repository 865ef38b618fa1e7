"""Tables, numbers and pictures as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf, isinf
from pathlib import Path

from reproduce.paper.cell import Cell
from reproduce.paper.claims.verdict import Find, Judged, PartJudged, ends
from svdiff_delta._util.atomic import replace_file
from svdiff_train.evaluate.statistics import Interval, mean_interval

NOTHING = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join([" --- "] * len(head)) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def mean_shown(values: Sequence[float], digits: int = 3, *, within: tuple[float, float] = (-inf, inf)) -> str:
    """Return a mean with its 95 % interval, cut to what values can be, or a dash; these decide nothing."""
    if not values:
        return NOTHING
    found = mean_interval(values)
    low, high = ends(found)
    return interval_shown(Interval(found.mean, max(low, within[0]), min(high, within[1]), found.count), digits)


def interval_shown(found: Interval, digits: int = 3) -> str:
    """Return an interval as a text."""
    low, high = (number_shown(end, digits) for end in ends(found))
    if isinf(ends(found)[0]):
        return number_shown(found.mean, digits) if abs(found.mean) < 100 else f"{found.mean:,.0f}"
    return f"{number_shown(found.mean, digits)} [{low}, {high}]"


def number_shown(value: float, digits: int) -> str:
    """Return a number as a text; what rounds to nothing has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def part_shown(judged: PartJudged) -> str:
    """Return what was measured for a part, in words and numbers."""
    return f"{judged.part.says}: {interval_shown(judged.interval)}"


def rule_shown(judged: Judged) -> str:
    """Return how many units a claim was judged by."""
    if not judged.looks:
        return NOTHING
    count = judged.claim.looks[judged.looks - 1]
    return f"{count} units, look {judged.looks} of {len(judged.claim.looks)}"


def picture(out: Path, cell: Cell, label: str, find: Find) -> str:
    """Return a row of pictures of a cell that was measured, as a page in `pages` links to it, or a dash."""
    path = out / "pictures" / cell.experiment / f"{cell.name}.{label}.png"
    if find(cell) is None or not path.exists():
        return NOTHING
    return f"![{cell.name}, {label}](../pictures/{cell.experiment}/{path.name})"


def write_page(path: Path, lines: Sequence[str]) -> Path:
    """Write the lines of a page, with one empty line after a text whoever adds it, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines).rstrip())
    with replace_file(path, overwrite=True) as stream:
        stream.write(f"{text}\n".encode())
    return path
