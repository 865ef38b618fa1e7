"""Scores as a table, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from svdiff_delta._text.printable import printable

from .scores import Scores


def render(results: Sequence[Scores]) -> Iterator[str]:
    """Yield a head and a line for each set of pictures: means and shares with their intervals."""
    rows = [["", "pictures", "text", *(f"image ({name})" for name in results[0].image), *results[0].shares()]]
    for found in results:
        means = [found.text_mean, *map(found.image_mean, found.image), *found.shares().values()]
        rows.append([printable(found.label), str(len(found.text)), *map(str, means)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = (
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *rest]).rstrip()
