"""The pages of what comes before the claims: (i) the search with its log, (s) what the judge can tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from reproduce.paper.choices import Choices
from reproduce.paper.claims.pairs import both, stitched
from reproduce.paper.claims.verdict import Find
from reproduce.paper.experiments.detector import BOUND
from reproduce.paper.experiments.search_stitching import colour_gain, shape_gain, unmixing_label
from reproduce.paper.planner import Plan, Progress
from reproduce.paper.plots import matrix

from .text import NOTHING, picture, table


def search(plan: Plan, progress: Progress, find: Find, out: Path) -> list[str]:
    """Return the log of the search: all that was tried, by stage, and what was chosen by which rule."""
    found = ["# (i) How the recipes were chosen", "", "On subjects apart, by rules that stood in the plan before.", ""]
    if progress.chosen:
        found += table(["what", "chosen"], chosen(progress.choices))
    for stage in plan.stages:
        rows = [
            [label, *numbers, *_shown(cell, out, find)]
            for label, cell in stage.cells(progress.choices).items()
            if (kept := find(cell)) is not None
            for numbers in [_numbers(kept)]
        ]
        if rows:
            found += [
                f"## {stage.title}",
                "",
                f"Rule: {stage.rule}.",
                "",
                *table(["tried", "measured", "pictures"], rows),
            ]
    return found


def chosen(choices: Choices) -> list[list[str]]:
    """Return what was chosen, in words."""
    rates = ", ".join(f"{method} {rate:g}" for method, rate in choices.rates.items())
    alone = ", ".join(f"{method} {rate:g}" for method, rate in choices.picture_rates.items())
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


def _numbers(numbers: Mapping[str, Any]) -> list[str]:
    """Return what a cell of the search found, in one column."""
    if "identity" in numbers:
        parts = {key: float(numbers[key]) for key in ("text", "image", "identity")}
    elif "faithful" in numbers:
        parts = {"faithful": float(numbers["faithful"])}
    elif "shape" in numbers:
        parts = {"shape": shape_gain(numbers), "colours": colour_gain(numbers)}
    else:
        kind = "negative" if "negative" in numbers else "positive"
        judged = {"positive": numbers[kind]}
        parts = {"score": fmean(judged["positive"]["score"]), "both": both(judged), "stitched": stitched(judged)}
    return [", ".join(f"{name} {value:.3f}" for name, value in parts.items())]


def _shown(cell: Any, out: Path, find: Find) -> list[str]:
    shown = [picture(out, cell, label, find) for label in ("painted", "negative", "positive", "mixed")]
    return [next((one for one in shown if one != NOTHING), NOTHING)]


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
