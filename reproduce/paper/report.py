"""`paper.md` and its pages: every claim of the paper beside what was measured, then each experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final, get_args

from .cell import Cell
from .claims.verdict import Judged, Verdict
from .found import Found
from .pages.claim_section import claim_section, summary
from .pages.plan import write_plan
from .pages.search import detector, search
from .pages.tables import TABLES
from .pages.text import mean_shown, table, write_page
from .planner import Plan, Progress, cells_in_sight, play
from .plots import overview

TITLES: Final = {
    "a": "Single subjects", "b": "Several subjects in one picture", "c": "Edits of a single picture",
    "d": "Subsets of parameters", "e": "Sums and interpolations", "f": "Style mixing", "g": "Correlation",
    "h": "Ranks and scales",
}  # fmt: skip

INTRODUCTION: Final = """\
# The paper's claims on the embedded base

SVDiff (Han et al., ICCV 2023) makes its claims on Stable Diffusion. This report trains and measures its experiments on
the embedded base, a Stable Diffusion of 10 million weights that knows 150 emoji, so that anyone can repeat them on two
CPU cores: `make paper`. What agrees here agrees at this scale; what differs here may hold at the paper's. Pictures are
judged by the base's own CLIP and by plain pixels, not by people.

Measures, margins, pairing and looks stood in [the plan](plan.md) before the cells were run. A claim *agrees* or
*differs* by an interval that holds at all looks together; it is *undecided* where no look decided it.
"""


def write_report(out: Path, plan: Plan, base: str) -> Path:
    """Write the plan, the report and its pages from the cells in a folder; the same cells give the same bytes.

    Times stand in `times.md` alone.

    Args:
        out: holds `cells`, `pictures` and, of other bases, `former`.
        plan: what is asked for.
        base: the base's fingerprint; numbers of another are named and not used.

    Returns:
        The path of the report.
    """
    find = Found(out, base)
    progress = play(plan, find)
    cells = list(cells_in_sight(plan, progress).values())
    claims = progress.judged(find)
    write_plan(plan, out)
    _write_pages(out, plan, progress, claims, cells, find)
    overview(claims, out / "plots" / "overview.png")
    write_page(out / "times.md", _times(cells, find))
    return write_page(out / "paper.md", _front(out, plan, progress, claims, cells, find))


def _write_pages(
    out: Path, plan: Plan, progress: Progress, claims: Sequence[Judged], cells: Sequence[Cell], find: Found
) -> None:
    for letter, title in TITLES.items():
        own = [one for one in claims if one.claim.letter == letter]
        if not own:
            continue
        lines = [f"# ({letter}) {title}", "", "[All claims](../paper.md)", ""]
        lines += TABLES[letter](cells, find, out) if letter in TABLES else []
        for one in own:
            lines += claim_section(one, out, find)
        write_page(out / "pages" / f"{letter}.md", lines)
    if plan.stages:
        write_page(out / "pages" / "i.md", search(plan, progress, find, out))
    if plan.check is not None:
        write_page(out / "pages" / "s.md", detector(plan, progress, find, out))


def _front(
    out: Path, plan: Plan, progress: Progress, claims: Sequence[Judged], cells: Sequence[Cell], find: Found
) -> list[str]:
    counted = Counter(one.verdict for one in claims)
    verdicts = ", ".join(f"{counted[verdict]} {verdict}" for verdict in get_args(Verdict) if counted[verdict])
    rows = [
        [one.claim.where, one.claim.says, summary(one), f"**{one.verdict}**",
         f"[({one.claim.letter})](pages/{one.claim.letter}.md#{one.claim.name})"]
        for one in claims
    ]  # fmt: skip
    lines = [*INTRODUCTION.splitlines(), "", f"Of {len(claims)} claims: {verdicts}.", ""]
    lines += table(["section", "the paper's claim", "measured here", "verdict", "more"], rows)
    if (out / "plots" / "overview.png").exists() and any(one.parts for one in claims):
        lines += ["![all claims, in margins of equality](plots/overview.png)", ""]
    return [*lines, "## How far it is", "", *_status(out, plan, progress, cells, find)]


def _status(out: Path, plan: Plan, progress: Progress, cells: Sequence[Cell], find: Found) -> list[str]:
    done = sum(find(cell) is not None for cell in cells)
    lines = [
        f"- Base: `{find.base}`, the one that ships with this version.",
        f"- {done} cells are measured; the plan has asked for {len(progress.spent)} of {plan.budget} trainings.",
        *_identity(cells, find),
        f"- It goes on with: {progress.waiting.title}." if progress.waiting else "- The plan is at its end.",
    ]
    if progress.refused:
        lines.append(f"- The budget did not suffice for another look at {', '.join(sorted(progress.refused))}.")
    for name, groups in sorted(progress.dropped.items()):
        lines.append(f"- {name}: not judged by {'; '.join(groups)}, which [the judge](pages/s.md) cannot tell apart.")
    lines += [f"- {count} cells were measured on {device}." for device, count in find.elsewhere(cells).items()]
    searched = len(progress.chosen) == len(plan.stages)
    lines += [f"- Among the cells: {line}." for line in find.outside(cells, searched=searched)]
    more = [("how recipes were chosen", "i"), ("what the judge tells apart", "s")]
    lines += [f"- [{text[0].upper()}{text[1:]}](pages/{letter}.md)." for text, letter in more if _page(out, letter)]
    return [*lines, "- [What it took](times.md).", *_former(out)]


def _page(out: Path, letter: str) -> bool:
    return (out / "pages" / f"{letter}.md").exists()


def _identity(cells: Sequence[Cell], find: Found) -> list[str]:
    """Return the identity that comparisons stand on: of SVDiff at its rate, and the best of any method and rate."""
    own = [cell for cell in cells if cell.experiment == "a" and "-svdiff-" in cell.name]
    reached = _identities(own, find)
    if not reached:
        return []
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.experiment == "i":
            groups.setdefault(_rate_of(cell), []).append(cell)
    tried = {rate: found for rate, group in groups.items() if (found := _identities(group, find))}
    rate = _rate_of(own[0])
    lines = [f"- Identity of SVDiff with λ = 1 at its searched rate ({rate}): {_share(reached)} of its pictures."]
    if tried:
        best = max(tried, key=lambda name: fmean(tried[name]))
        own_rate = f"it reached {_share(tried[rate])}, and " if rate in tried else ""
        most = f"the best of all methods and rates, {best}, {_share(tried[best])}"
        lines.append(f"- On the searched subjects {own_rate}{most}.")
    return lines


def _share(found: Sequence[float]) -> str:
    return mean_shown(found, within=(0.0, 1.0))


def _rate_of(cell: Cell) -> str:
    return " ".join(f"{recipe.method} {recipe.rate:g}" for recipe in cell.recipes)


def _identities(cells: Sequence[Cell], find: Found) -> list[float]:
    return [float(numbers["identity"]) for cell in cells if (numbers := find(cell)) and "identity" in numbers]


def _former(out: Path) -> list[str]:
    """Return where reports of other bases lie, which are kept apart."""
    return [
        f"- On a former base, `{path.parent.name}`, by the measures of then: "
        f"[its report](former/{path.parent.name}/paper.md)."
        for path in sorted((out / "former").glob("*/paper.md"))
    ]


def _times(cells: Sequence[Cell], find: Found) -> list[str]:
    rows = [
        [letter, str(len(seconds)), f"{sum(seconds) / len(seconds):.0f}", f"{sum(seconds) / 3600:.2f}"]
        for letter, seconds in sorted(find.seconds(cells).items())
    ]
    head = ["experiment", "cells", "seconds each", "hours of one core"]
    return [
        "# What it took",
        "",
        "Trainings included; a training that two cells need counts once.",
        "",
        *table(head, rows),
    ]
