"""The pages of what comes before the claims: (i) the search with its log, (s) what the judge can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.claims.pairs import both, stitched
from reproduce.paper.claims.verdict import Find
from reproduce.paper.experiments.detector import BOUND
from reproduce.paper.experiments.search_rates import PICTURE_RATES, RATES
from reproduce.paper.experiments.search_stitching import colour_gain, shape_gain, unmixing_label
from reproduce.paper.experiments.stage import Stage
from reproduce.paper.planner import Plan, Progress
from reproduce.paper.plots import matrix
from svdiff_train.settings.config import MethodName

from .text import NOTHING, picture, table


def search(plan: Plan, progress: Progress, find: Find, out: Path) -> list[str]:
    """Return the log of the search: all that was tried, by stage, and what was chosen by which rule."""
    found = ["# (i) How the recipes were chosen", "", "On subjects apart, by rules that stood in the plan before.", ""]
    found += table(["what", "chosen"], chosen(progress.choices)[: len(progress.chosen)])
    for stage in plan.stages:
        cells = {label: cell for label, cell in stage.cells(progress.choices).items() if find(cell) is not None}
        numbers = {label: _numbers(find(cell) or {}) for label, cell in cells.items()}
        if not cells:
            continue
        found += [f"## {stage.title}", "", f"Rule: {stage.rule}.", "", *_means(stage, numbers)]
        rows = [[label, _told(numbers[label]), _shown(cell, out, find)] for label, cell in cells.items()]
        found += table(["tried", "measured", "pictures"], rows)
    return found


def _means(stage: Stage, numbers: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the means that the rule looks at, where something was tried more than once."""
    things: dict[str, list[Mapping[str, float]]] = {}
    for label, one in numbers.items():
        things.setdefault(stage.thing(label), []).append(one)
    if len(things) == len(numbers):
        return []
    rows = [[thing, *(f"{fmean(one[key] for one in some):.3f}" for key in some[0])] for thing, some in things.items()]
    return table(["mean", *next(iter(numbers.values()))], rows)


def chosen(choices: Choices) -> list[list[str]]:
    """Return what was chosen, in words: a row for each stage, in order."""
    rates = ", ".join(_rate(method, rate, RATES[method]) for method, rate in choices.rates.items())
    alone = ", ".join(_rate(method, rate, PICTURE_RATES[method]) for method, rate in choices.picture_rates.items())
    factors = ", ".join(f"{method} {factor:g}" for method, factor in choices.factors.items())
    return [
        ["learning rates, λ = 1", rates],
        ["learning rates of single pictures, λ = 0", alone],
        ["two subjects", f"{choices.pair_steps} steps, factors on the rate: {factors}"],
        ["three subjects", f"{choices.triple_steps} steps, {choices.triple_mix:g} of samples mixed"],
        ["unmix regularization", unmixing_label(choices.unmix)],
        ["negative prompt", choices.negative],
        ["styles", choices.style],
    ]


def _rate(method: MethodName, rate: float, tried: Sequence[float]) -> str:
    """Return a method's rate, and whether nothing beyond it was tried."""
    edge = {min(tried): " (the lowest tried)", max(tried): " (the highest tried)"}.get(rate, "")
    return f"{method} {rate:g}{edge}"


def _numbers(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return what a cell of the search found."""
    if "identity" in numbers:
        return {key: float(numbers[key]) for key in ("text", "image", "identity")}
    if "faithful" in numbers:
        return {"faithful": float(numbers["faithful"])}
    if "shape" in numbers:
        return {"shape": shape_gain(numbers), "colours": colour_gain(numbers)}
    kinds = {kind: {"positive": numbers[kind]} for kind in ("negative", "positive") if kind in numbers}
    judged = next(iter(kinds.values()))
    found = {"score": fmean(judged["positive"]["score"]), "both": both(judged), "stitched": stitched(judged)}
    return found | ({"stitched without it": stitched(kinds["positive"])} if len(kinds) > 1 else {})


def _told(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())


def _shown(cell: Cell, out: Path, find: Find) -> str:
    shown = [picture(out, cell, label, find) for label in ("painted", "negative", "positive", "mixed")]
    return next((one for one in shown if one != NOTHING), NOTHING)


def detector(plan: Plan, progress: Progress, find: Find, out: Path) -> list[str]:
    """Return what the judge takes each held-out subject for."""
    numbers = None if plan.check is None else find(plan.check)
    found = [
        "# (s) Can the judge tell the subjects apart?",
        "",
        "Before anything is trained the judge sorts the pictures of held-out subjects that ship with the base:",
        "whole, and as one half of a picture of two. A row is what was shown, a column what it was taken for; no",
        f"picture is compared with itself. Where {BOUND:g} or more of two subjects' pictures are taken for the other",
        "one, or of a subject's for the base's of its class, no claim is judged by them.",
        "",
    ]
    if numbers is None:
        return [*found, "Not measured yet."]
    for kind in ("whole", "half"):
        path = out / "plots" / f"confusion-{kind}.png"
        matrix(numbers["subjects"], numbers[kind], path)
        rows = [[name, *map(str, row)] for name, row in zip(numbers["subjects"], numbers[kind], strict=True)]
        found += [f"## {kind}", "", *table(["", *numbers["subjects"]], rows), f"![{kind}](../plots/{path.name})", ""]
    shares = [[name, f"{share:.3f}"] for name, share in numbers["class"].items()]
    found += ["## Beside the class", "", *table(["subject", "nearer to their own kind"], shares)]
    left = [f"- {name}: {', '.join(groups)}" for name, groups in sorted(progress.dropped.items())]
    return [*found, "## Left out of claims", "", *(left or ["Nothing."])]
