"""Sections (e), (f) and (g): sums and interpolations, style mixing, correlation."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any, Final

from reproduce.paper.claim import Claim, all_of, higher, shown, table
from reproduce.paper.experiments.combined import ALPHAS, METHODS
from reproduce.paper.experiments.shifts import FASTER, MIXED_LAYERS, MIXED_SUBSET
from reproduce.paper.subjects import ABLATED, COMBINED, THINGS, WITHIN

from .results import Results, Section

ABOUT_SUMS: Final = """\
Results of (a), seed 0, added: σ + δ₁ + δ₂ (Eq. 4), and W + ΔW₁ + ΔW₂. Image alignment of each subject in its own
model → in the sum; how often one picture by the sum shows both.
"""
ABOUT_WAYS: Final = """\
Interpolation (Eq. 5) from α = 0 to 1, between two classes that were both learned as a “thing” ({things}) and within
one class ({within}): cosines with the first and with the second subject's pictures.
"""
ABOUT_STYLES: Final = """\
Shifts trained on {subset}: those of layers {layers} from one subject give the geometry, the
others from another the appearance. *Shape*: overlap of silhouettes with pictures of each parent from the same
noise; *colour*: share of colours in common with them, and of the parents with one another.
"""
STYLE_HEAD: Final = (
    "", "shape: geometry", "shape: appearance", "colour: geometry", "colour: appearance", "colour: parents",
    "geometry's", "appearance's", "mixed",
)  # fmt: skip
LABELS: Final = {"svdiff": "SVDiff", "full": "full"}


def _pair(names: tuple[str, ...]) -> str:
    return "+".join(names).replace(" ", "_")


def combined(results: Results) -> Section:
    """Return section (e)."""
    rows, lost = [], dict[str, list[float]]()
    for method in METHODS:
        lost[method] = []
        for names in COMBINED:
            cell = f"sum-{_pair(names)}-{method}"
            numbers = results.numbers("e", cell)
            if numbers is None:
                continue
            lost[method] += [a - b for a, b in zip(numbers["alone"], numbers["together"], strict=True)]
            values = [f"{a:.3f} → {b:.3f}" for a, b in zip(numbers["alone"], numbers["together"], strict=True)]
            both = numbers["pair"]["both"]
            pictures = [results.row("e", cell, label.replace(" ", "_"), height=48) for label in (*names, "pair")]
            rows.append([f"{LABELS[method]}, {' + '.join(names)}", *values, f"{sum(both)} of {len(both)}", *pictures])
    body = [
        ABOUT_SUMS,
        *table(
            ["", "first", "second", "both appear", "first by the sum", "second by the sum", "both by the sum"], rows
        ),
        "",
        ABOUT_WAYS.format(things=" and ".join(THINGS), within=" and ".join(WITHIN)),
        *table(["", *(f"α = {alpha:g}" for alpha in ALPHAS), "pictures"], _ways(results)),
    ]
    more = [a - b for a, b in zip(lost["svdiff"], lost["full"], strict=False)]
    return Section("(e) Sums and interpolations", body, [
        Claim(
            "4.4, Fig. 8",
            "The sum keeps features of each subject, and adding shifts interferes more than adding full weights.",
            f"image alignment lost in the sum: SVDiff {shown(lost['svdiff'])}, full {shown(lost['full'])}",
            higher(more),
        ),
        *[_between(results, method) for method in METHODS],
    ])  # fmt: skip


def _ways(results: Results) -> list[list[str]]:
    rows = []
    for method in METHODS:
        for kind in ("things", "within"):
            numbers = results.numbers("e", f"{kind}-{method}")
            if numbers is not None:
                values = [f"{first:.3f}, {second:.3f}" for first, second in numbers["like"]]
                rows.append([f"{LABELS[method]}, {kind}", *values, results.row("e", f"{kind}-{method}", "strip")])
    return rows


def _between(results: Results, method: str) -> Claim:
    found: list[Any] = [results.numbers("e", f"{kind}-{method}") for kind in ("things", "within")]
    steps = [
        b - a for numbers in found if numbers for a, b in pairwise(first - second for first, second in numbers["like"])
    ]
    return Claim(
        "4.4, Fig. 11",
        f"Interpolating {LABELS[method]} gives intermediate concepts.",
        "likeness to the first less that to the second, per step of α: " + ", ".join(f"{step:+.3f}" for step in steps),
        "not measured" if not steps else "agrees" if min(steps) > 0 else "differs" if max(steps) < 0 else "undecided",
    )


def styles(results: Results) -> Section:
    """Return section (f)."""
    names = {pair: f"{pair[0]}-as-{pair[1]}".replace(" ", "_") for pair in permutations(ABLATED, 2)}
    rows, shape, colour = [], [], []
    for (geometry, appearance), cell in names.items():
        numbers = results.numbers("f", cell)
        if numbers is None:
            continue
        shape.append(numbers["shape"]["geometry"] - numbers["shape"]["appearance"])
        colour.append(numbers["colour"]["appearance"] - numbers["parents"])
        rows.append(
            [f"{geometry} as {appearance}"]
            + [f"{numbers[what][parent]:.2f}" for what in ("shape", "colour") for parent in ("geometry", "appearance")]
            + [f"{numbers['parents']:.2f}"]
            + [results.row("f", cell, label, height=48) for label in ("geometry", "appearance", "mixed")]
        )
    body = [
        ABOUT_STYLES.format(subset=MIXED_SUBSET, layers=MIXED_LAYERS),
        *table(STYLE_HEAD, rows),
    ]
    claim = Claim(
        "4.4, Fig. 10",
        "Geometry and appearance can be taken from different shifts by their layers.",
        f"shape: nearer to the geometry's parent by {shown(shape)}; "
        f"colours: nearer to the appearance's parent than that is to the other by {shown(colour)}",
        all_of(higher(shape), higher(colour)),
    )
    return Section("(f) Style mixing", body, [claim])


def correlation(results: Results) -> Section:
    """Return section (g)."""
    numbers = results.numbers("g", "cosines")
    body = [
        "Cosines between shifts that were learned one by one, a mean over all layers; on the diagonal between two",
        f"runs, the second with {FASTER:g} times the learning rate (Fig. 9a).",
        "",
    ]
    apart, own = list[float](), list[float]()
    if numbers is not None:
        names, matrix = numbers["names"], numbers["matrix"]
        rows = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, matrix, strict=True)]
        body += table(["", *names], rows)
        own = [matrix[index][index] for index in range(len(names))]
        apart = [value for row, values in enumerate(matrix) for value in values[:row]]
    claim = Claim(
        "appendix, Fig. 9a",
        "Shifts of one subject are alike between runs; those of different subjects are less so.",
        f"diagonal {shown(own)}, the others {shown(apart)}",
        "not measured"
        if not own
        else "agrees"
        if min(own) > max(apart)
        else higher([value - sum(apart) / len(apart) for value in own]),
    )
    return Section("(g) Correlation", body, [claim])
