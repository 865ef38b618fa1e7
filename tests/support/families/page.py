"""Write the table of families into the docs, and read it again.

`make families`, or `PYTHONPATH=tests python -m support.families.page`, measures all and writes the page anew; a slow
test measures all and compares, a fast one looks for gaps.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from .cell import Cell
from .names import FAMILIES, GROUPS

PAGE: Final = Path(__file__).parents[3] / "docs" / "families.md"
BEGIN: Final = "<!-- measured from here on by `make families` -->\n"
NO: Final = "no"
NONE: Final = "–"

Cells = dict[tuple[str, str], Cell]
"""The cells of one family by table and column."""


def shares(table: Mapping[str, Cells]) -> tuple[int, int, int]:
    """Return how many cells work, how many do not, and how many have no meaning."""
    kinds = [cell.kind for cells in table.values() for cell in cells.values()]
    return kinds.count("yes"), kinds.count("no"), kinds.count("none")


def render(table: Mapping[str, Cells]) -> str:
    """Return what stands on the page below its mark: shares, tables and reasons."""
    yes, no, none = shares(table)
    total = yes + no + none
    said = (
        f"Of {total} cells {yes} work ({yes / total:.1%}), {no} do not and say why ({no / total:.1%}), and {none} have "
        f"no meaning ({none / total:.1%}). Of those with a meaning {yes / (yes + no):.1%} work."
    )
    lines = [said, ""]
    for group in GROUPS:
        lines += [f"### {group}", "", *_rows(table, group), ""]
    lines += ["## What does not work, and why", "", *_reasons(table, "no"), ""]
    return "\n".join([*lines, "## Cells without a meaning", "", *_reasons(table, "none"), ""])


def _rows(table: Mapping[str, Cells], group: str) -> Iterator[str]:
    columns = GROUPS[group]
    yield f"| family | {' | '.join(columns)} |"
    yield f"| --- |{' --- |' * len(columns)}"
    for name, cells in table.items():
        yield f"| {name} | {' | '.join(_short(cells[group, column]) for column in columns)} |"


def _short(cell: Cell) -> str:
    return {"no": NO, "none": NONE}.get(cell.kind, cell.text)


def _reasons(table: Mapping[str, Cells], kind: str) -> Iterator[str]:
    for name, cells in table.items():
        for (group, column), cell in cells.items():
            if cell.kind == kind:
                yield f"- {name}, {group}, {column}: {cell.text}"


def parse(page: str) -> dict[str, Cells]:
    """Return the cells that a page has, with the reasons that stand below; a cell without one gets an empty one."""
    reasons, found, group = {}, dict[str, Cells](), ""
    lines = page.partition(BEGIN)[2].splitlines()
    for line in lines:
        if line.startswith("- "):
            where, _, reason = line[2:].partition(": ")
            reasons[tuple(where.split(", "))] = reason
    columns: list[str] = []
    for line in lines:
        if line.startswith("### "):
            group = line[4:]
        if not line.startswith("| ") or line.startswith("| --- "):
            continue
        name, *texts = line.strip("| ").split(" | ")
        if name == "family":
            columns = texts
            continue
        for column, text in zip(columns, texts, strict=True):
            kind = {NO: "no", NONE: "none"}.get(text, "yes")
            said = text if kind == "yes" else reasons.get((name, group, column), "")
            found.setdefault(name, {})[group, column] = Cell(kind, said)  # type: ignore[arg-type]
    return found


def faults(table: Mapping[str, Cells]) -> list[str]:
    """Return what went wrong without an error, a line for each cell."""
    return [
        f"{name}, {', '.join(where)}: {cell.text}"
        for name, cells in table.items()
        for where, cell in cells.items()
        if cell.kind == "fault"
    ]


def main() -> None:
    """Measure all families and write the page; with a fault nothing is written."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["SVDIFF_HOME"] = home  # the user's own cache is none of this
        from .measure import measure

        table = {name: measure(name) for name in FAMILIES}
    if found := faults(table):
        sys.exit("wrong without an error:\n" + "\n".join(found))
    head, mark, _ = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(head + mark + "\n" + render(table), "utf-8")


if __name__ == "__main__":
    main()
