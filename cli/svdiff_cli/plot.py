"""Pictures of deltas: norms by block, a histogram, a heat map of cosines. They need the plot extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import printable

from . import options
from .printing import echo
from .references import keep_apart, needs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@click.command()
@click.argument("delta", metavar="DELTA")
@options.output("The PNG to write.")
@options.force
def plot(delta: str, output: Path, force: bool) -> None:
    """Draw a delta: the norm of each block, and a histogram of all shifts."""
    from svdiff_delta._util.atomic import check_output

    check_output(output, overwrite=force, folder=False)
    keep_apart(output, delta)
    figure = _figure(9, 4)
    from svdiff_delta.io import load
    from svdiff_delta.ops.stats import by_block, wide

    opened = load(delta)
    blocks = by_block(opened)
    left, right = figure.subplots(1, 2)
    left.barh(list(blocks), [summary.norm for summary in blocks.values()])
    left.invert_yaxis()
    left.set_xlabel("norm of δ")
    for dims, label in ((1, "norm weights"), (2, "matrices"), (4, "convolutions")):
        names = [name for name, parameter in opened.metadata.parameters.items() if len(parameter.shape) == dims]
        if names:
            values = [value for name in names for value in wide(opened, name)]
            right.hist(values, bins=101, histtype="step", label=label)
    right.set_yscale("log")
    right.set_xlabel("δ")
    right.set_ylabel("how many")
    right.legend()
    _save(figure, output, overwrite=force)
    echo(f"wrote {output}")


def heat_map(names: Sequence[str], matrix: NDArray[np.float64], output: Path, *, overwrite: bool) -> None:
    """Draw a labelled matrix of cosines (paper, Fig. 9a)."""
    figure = _figure(2 + 0.7 * len(names), 1.5 + 0.7 * len(names))
    axes = figure.subplots()
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(image, label="mean cosine over layers")
    _save(figure, output, overwrite=overwrite)


@dataclass(frozen=True)
class Mark:
    """A labelled point of a scatter plot, each of its places a mean with a lower and an upper end, if those are known.

    Attributes:
        label: what stands beside it.
        across: on the horizontal axis.
        up: on the vertical axis.
    """

    label: str
    across: tuple[float, float | None, float | None]
    up: tuple[float, float | None, float | None]


def scatter(marks: Sequence[Mark], across: str, up: str, output: Path, *, overwrite: bool) -> None:
    """Draw labelled points with error bars, such as text and image alignment (paper, Fig. 9b).

    Args:
        marks: the points.
        across: what the horizontal axis shows.
        up: what the vertical axis shows.
        output: the PNG to write.
        overwrite: whether it may replace a file.
    """
    figure = _figure(6, 5)
    axes = figure.subplots()
    for mark in marks:
        bars = {"xerr": _reach(*mark.across), "yerr": _reach(*mark.up)}
        axes.errorbar(mark.across[0], mark.up[0], **bars, fmt="o", capsize=3)
        # A label is no formula, whatever characters it has.
        axes.annotate(
            printable(mark.label),
            (mark.across[0], mark.up[0]),
            xytext=(6, 6),
            textcoords="offset points",
            parse_math=False,
        )
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(0.15)
    _save(figure, output, overwrite=overwrite)


def _reach(mean: float, low: float | None, high: float | None) -> list[list[float]] | None:
    """Return how far an error bar goes down and up."""
    return None if low is None or high is None else [[mean - low], [high - mean]]


def check_plot(output: Path, *, overwrite: bool) -> None:
    """Refuse early what a drawing would refuse late; as `check_output`, and `needs` of matplotlib."""
    from svdiff_delta._util.atomic import check_output

    check_output(output, overwrite=overwrite)
    needs("matplotlib", "plot")


def _figure(width: float, height: float) -> Any:
    needs("matplotlib", "plot")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, output: Path, *, overwrite: bool) -> None:
    from svdiff_delta._util.atomic import replace_file

    with replace_file(output, overwrite=overwrite) as stream:
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
