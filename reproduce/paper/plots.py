"""The report's plots: one look, and the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.atomic import replace_file

from .claims.verdict import Judged, PartJudged, ends

COLOURS: Final = {"agrees": "#2e7d32", "differs": "#c62828", "undecided": "#757575", "not measured": "#bdbdbd"}
LINES: Final = ("#1f4e79", "#c55a11", "#548235", "#7f6000")
"""Of methods, in their order."""
WIDEST: Final = 12.0
"""Of the overview, in margins."""
STYLE: Final[dict[Any, Any]] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "figure.dpi": 110, "legend.frameon": False,
}  # fmt: skip


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, without the name of the program and the time."""
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, overwrite=True) as target:
        target.write(stream.getvalue())


def axes(width: float = 6.4, height: float = 3.0) -> tuple[Any, Any]:
    """Return a figure of the report's look, and its axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        return figure, figure.add_subplot()


def differences(judged: Judged, path: Path) -> None:
    """Draw every part of a claim: its units as points, its interval, and the margin of equality as a band."""
    parts = [part for part in judged.parts if part.part.kind != "exact"]
    if not parts:
        return
    figure, plot = axes(height=0.9 + 0.75 * len(parts))
    for row, part in enumerate(parts):
        _draw_part(plot, part, row)
    plot.axvline(0, color="black", linewidth=0.8)
    plot.set_yticks(range(len(parts)), [_wrapped(part.part.says) for part in parts], fontsize=7)
    plot.set_ylim(len(parts) - 0.4, -0.6)
    plot.set_xlabel("difference")
    save(figure, path)


def _draw_part(plot: Any, judged: PartJudged, row: int) -> None:
    margin = judged.part.margin
    left = -margin if judged.part.kind == "similar" else 0.0
    plot.barh(row, margin - left, left=left, height=0.7, color="#fff2cc", zorder=1)
    count = len(judged.values)
    places = [row + 0.22 * ((index % 5) / 2 - 1) for index in range(count)]
    plot.plot(judged.values, places, "o", color="#9e9e9e", markersize=3, zorder=2)
    low, high = ends(judged.interval)
    colour = COLOURS[judged.verdict]
    plot.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt", zorder=3)
    plot.plot([judged.interval.mean], [row], "D", color=colour, markersize=6, zorder=4)


def _wrapped(text: str, width: int = 34) -> str:
    from textwrap import fill

    return fill(text, width)


def overview(claims: Sequence[Judged], path: Path) -> None:
    """Draw the intervals of all claims in units of their margins, so that one picture shows all verdicts."""
    rows = [
        (
            f"({one.claim.letter}) {one.claim.name}"
            + (f", {number} of {len(one.parts)}" if len(one.parts) > 1 else ""),
            part,
        )
        for one in claims
        for number, part in enumerate(one.parts, 1)
        if part.part.kind != "exact"
    ]
    if not rows:
        return
    figure, plot = axes(width=7.2, height=0.8 + 0.22 * len(rows))
    for row, (_, part) in enumerate(rows):
        left = -1.0 if part.part.kind == "similar" else 0.0
        plot.barh(row, 1 - left, left=left, height=0.8, color="#fff2cc", zorder=0)
        low, high = (_cut(end / part.part.margin) for end in ends(part.interval))
        colour = COLOURS[part.verdict]
        plot.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        plot.plot([_cut(part.interval.mean / part.part.margin)], [row], "D", color=colour, markersize=4)
    plot.axvline(0, color="black", linewidth=0.8)
    plot.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
    plot.set_ylim(len(rows) - 0.4, -0.6)
    plot.set_xlabel("difference, in margins of equality")
    save(figure, path)


def _cut(value: float) -> float:
    """Return a place on the overview: what lies far out stands at its edge."""
    return max(-WIDEST, min(WIDEST, value))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, path: Path, *, log: bool = False
) -> None:
    """Draw lines of points, one for each label."""
    if not any(series.values()):
        return
    figure, plot = axes()
    for colour, (label, points) in zip(LINES * len(series), series.items(), strict=False):
        plot.plot(
            [at for at, _ in points], [value for _, value in points], "o-", color=colour, label=label, markersize=4
        )
    if log:
        plot.set_xscale("log")
    plot.set_xlabel(x)
    plot.set_ylabel(y)
    plot.legend(fontsize=7)
    save(figure, path)


def scatter(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, path: Path) -> None:
    """Draw every run as a point and the mean of each label as a diamond, as in the paper's Fig. 9b."""
    if not any(series.values()):
        return
    figure, plot = axes(height=3.6)
    for colour, (label, points) in zip(LINES, series.items(), strict=False):
        if not points:
            continue
        left, up = [at for at, _ in points], [value for _, value in points]
        plot.plot(left, up, "o", color=colour, alpha=0.35, markersize=4)
        plot.plot([sum(left) / len(left)], [sum(up) / len(up)], "D", color=colour, markersize=9, label=label)
    plot.set_xlabel(x)
    plot.set_ylabel(y)
    plot.legend(fontsize=7)
    save(figure, path)


def bars(values: Mapping[str, float], y: str, path: Path) -> None:
    """Draw one bar for each label."""
    if not values:
        return
    figure, plot = axes()
    plot.bar(list(values), list(values.values()), color=LINES[0])
    plot.tick_params("x", rotation=40, labelsize=7)
    plot.set_ylabel(y)
    save(figure, path)


def matrix(names: Sequence[str], counts: Sequence[Sequence[int]], path: Path) -> None:
    """Draw a confusion matrix: rows are what was shown, columns what it was taken for, as shares of the row."""
    figure, plot = axes(width=5.4, height=4.6)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    plot.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    plot.grid(visible=False)
    plot.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    plot.set_yticks(range(len(names)), names, fontsize=7)
    for row, found in enumerate(counts):
        for column, count in enumerate(found):
            if count:
                colour = "white" if shares[row][column] > 0.5 else "black"
                plot.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    save(figure, path)
