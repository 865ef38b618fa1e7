"""`plan.md`: every claim's measure, margin, pairing and looks, as they stand in the code before the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import BEFORE
from reproduce.paper.claims.claim import Claim, Part
from reproduce.paper.planner import Plan, all_cells, trainings
from reproduce.paper.recipe import BATCH, CLASS_IMAGES, PRIOR, STEPS
from reproduce.paper.spending import ALPHA, RHO, nominal

from .text import table, write_page

PACE: Final = {"λ = 1": 62.0, "λ = 0": 32.0, "measuring": 18.0}
"""Seconds of 200 steps with pictures of the class and without, and of painting and judging a cell, one thread each."""

INTRODUCTION: Final = """\
# The plan of the paper's report

Written from the code of `reproduce/paper` before its cells are run: what is measured for each claim, what counts as
equal, what is paired with what, and when one looks. A test holds this page and the code together.

- **Difference.** Each claim is one or more differences between two sides of a *unit*: the same subject (or pair, or
  picture), training seed, prompts, and noise of every picture on both sides. Units take the subjects in turn, then the
  next seed. The interval is that of the mean over these subjects, however often each is trained. So from two seeds
  of every subject on, what counts is how seeds of one subject differ (Welch and Satterthwaite, with degrees of freedom
  that few seeds do not bias); before that, what differs between subjects counts as chance too, which is too wide rather
  than too narrow.
- **Verdict.** "Higher" *agrees* where the interval lies above 0, and *differs* where it lies below the margin: the
  paper's difference is then not there, or too small to count. "Similar" *agrees* where the interval lies within ± the
  margin, and *differs* where it lies beyond. A claim of several parts agrees where all agree, and differs where one
  does; for that one the chance of error is shared out among the parts.
- **Looks.** A claim is judged when so many units are there, and not in between; a part that has been decided stays so.
  All intervals of all looks of a claim's part hold together with a chance of {confidence:.0%}: the chance of error is
  spent look by look, α·tᵖ with p = {rho:g} of the share t of the planned units (Kim and DeMets), by the recursion for
  normal increments; Student's quantile stands at each look's own chance of error.
- **One picture.** Units that happen to be all alike are not taken for certain: of each subject one unit counts as
  being a picture off.
- **Chance.** Of {claims} claims one errs by chance where none holds: that is what {confidence:.0%} means.
- **Rounds.** In round k every open claim takes its look k, the cheapest first, while the budget lasts. What a round
  asks for depends on earlier looks alone, so a run that was stopped goes on as if it had not been.
- **Budget.** {budget} trainings, those of the search and {shown} of what is only shown included. The search takes
  {searched}, it and the first looks of all claims {first}, and all looks of all claims and what is shown would
  take {most}. Two run side by side with one thread each. At the
  pace that was measured when this was written ({pace})
  the first looks are over after about {first_hours} hours, and the budget after about {hours}.
- **Rates.** Each method's rate is the lowest that learns the searched subjects, by one rule for all. So a claim that a
  method underfits asks whether it does even at the rate that this rule gives it, on subjects that it was not given on.
- **Settings.** {steps} steps of {batch} pictures, and λ = {prior:g} with {classes} pictures of the class, as in the
  paper; λ = 0 for single pictures. Learning rates and all else that is chosen is searched on subjects apart, by the
  rules below.
- **Judge.** It first sorts the pictures of the held-out subjects. What it cannot tell apart is left out, and named.
"""


def write_plan(plan: Plan, out: Path) -> Path:
    """Write the plan's page, and return its path."""
    return write_page(out / "plan.md", plan_lines(plan))


def plan_lines(plan: Plan) -> list[str]:
    """Return the plan's page; counts are those before the search has chosen."""
    claims = plan.claims(BEFORE)
    searched = {cell.place: cell for stage in plan.stages for cell in stage.cells(BEFORE).values()}
    first, every = dict(searched), all_cells(plan)
    for claim in claims:
        first |= claim.cells(0)
    intro = INTRODUCTION.format(
        searched=_count(searched), first=_count(first), most=_count(every), pace=_pace(),
        shown=len(trainings(plan.beside(BEFORE))),
        first_hours=_hours(first.values()), hours=_hours(every.values(), plan.budget),
        confidence=1 - ALPHA, rho=RHO, claims=len(claims), budget=plan.budget,
        steps=STEPS, batch=BATCH, prior=PRIOR, classes=CLASS_IMAGES,
    )  # fmt: skip
    lines = [*intro.splitlines(), "", "## Claims", ""]
    for claim in claims:
        lines += _claim(claim)
    return [*lines, "## Search", "", *_search(plan)]


def _pace() -> str:
    with_prior, without, measuring = PACE.values()
    return f"{with_prior:g} s for {STEPS} steps with λ = 1, {without:g} s without, {measuring:g} s to paint and judge"


def _count(cells: Mapping[tuple[str, str], Cell]) -> int:
    return len(trainings(cells.values()))


def _hours(cells: Iterable[Cell], most: int | None = None) -> str:
    """Return how long cells take two processes, in hours; of more trainings than `most` only that part."""
    cells = list(cells)
    recipes = {recipe for cell in cells for recipe in cell.recipes}
    each = [recipe.steps / STEPS * PACE["λ = 1" if recipe.prior else "λ = 0"] for recipe in recipes]
    part = 1.0 if most is None else min(1.0, most / len(recipes))
    return f"{part * (sum(each) + len(cells) * PACE['measuring']) / 2 / 3600:.1f}"


def _claim(claim: Claim) -> list[str]:
    rows = [[part.says, part.kind, _margin(part)] for part in claim.parts]
    groups = "; ".join(" and ".join(group) for group in claim.groups if group)
    return [
        f"### ({claim.letter}) {claim.name}",
        "",
        f"*{claim.where}:* {claim.says}",
        "",
        *table(["measure", "kind", "margin"], rows),
        f"- Paired: {claim.pairing}.",
        *([f"- Units, in turn: {groups}."] if groups else []),
        f"- Looks: {_looks(claim)}.",
        *([f"- The judge must tell {_DETECTORS[claim.detector]} apart."] if claim.detector else []),
        "",
    ]


_DETECTORS: Final = {
    "class": "each subject and its class", "whole": "the subjects in whole pictures", "half": "the subjects in halves",
}  # fmt: skip


def _margin(part: Part) -> str:
    return f"{part.margin:,.4g}"


def _looks(claim: Claim) -> str:
    if claim.parts[0].kind == "exact":
        return "one, of a count"
    shares = nominal(claim.looks)
    return ", ".join(
        f"{count} units ({len(trainings(claim.cells(index).values()))} trainings; {100 * shares[index]:.2f} %)"
        for index, count in enumerate(claim.looks)
    )


def _search(plan: Plan) -> list[str]:
    lines = []
    for stage in plan.stages:
        cells = stage.cells(BEFORE)
        lines += [
            f"### {stage.title}",
            "",
            "Tried: " + "; ".join(stage.tried) + ".",
            "",
            f"Rule: {stage.rule}.",
            "",
            f"{len(trainings(cells.values()))} trainings: {_subjects(cells.values())}.",
            "",
        ]
    return lines


def _subjects(cells: Iterable[Cell]) -> str:
    names = {recipe.scene or " and ".join(recipe.subjects) for cell in cells for recipe in cell.recipes}
    return ", ".join(sorted(names))
