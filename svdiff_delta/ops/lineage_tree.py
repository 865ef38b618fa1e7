"""A lineage drawn as a tree: operations down to trained files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from svdiff_delta._text.printable import counted, plain, printable
from svdiff_delta.format.lineage import Lineage, Record
from svdiff_delta.format.metadata import Metadata

DEEPEST: Final = 64
"""Levels that are drawn: each indents all lines below it."""

LARGEST: Final = 200_000
"""Characters of a drawing."""

WIDEST: Final = 1_000
"""Characters of a title, or of an operation's arguments, in a drawing."""

_LEVEL: Final = "    │   "


def draw(metadata: Metadata, *, title: str) -> Iterator[str]:
    """Yield the lines of a tree that shows how a delta was made.

    Each file's own inputs are drawn where it first comes; from then on it says "shown above". It is said what is left
    out beyond `DEEPEST` levels and `LARGEST` characters.

    Args:
        metadata: of the delta.
        title: what to call it, if it has no title.
    """
    yield _cut(printable(metadata.title or title))
    if metadata.lineage is None:
        yield "└── trained" if metadata.training else "└── no operation is recorded"
        return
    yield from _tree(metadata.lineage)
    if omitted := metadata.lineage.extra.get("omitted"):
        yield f"left out for size: {_cut(plain(omitted))}"


def _tree(whole: Lineage) -> Iterator[str]:
    """Yield the lines of an operation, and below it those of what it was made from."""
    drawn: set[str] = set()
    room = LARGEST
    yield _operation(whole.record, 0)
    levels = [iter(whole.record.inputs)]
    while levels:
        depth = len(levels)
        if (sha256 := next(levels[-1], None)) is None:
            levels.pop()
            continue
        lines = [_input(whole, sha256, depth, drawn)]
        record = _made_by(whole, sha256)
        if record is not None and sha256 not in drawn and depth < DEEPEST:
            drawn.add(sha256)
            lines.append(_operation(record, depth))
            levels.append(iter(record.inputs))
        room -= sum(map(len, lines))
        if room < 0:
            left = 1 + sum(1 for rest in levels[:depth] for _ in rest)
            yield f"left out for length: {counted(left, 'input')} and what they were made from"
            return
        yield from lines


def _operation(record: Record, depth: int) -> str:
    arguments = ", ".join(f"{printable(key)} {plain(value)}" for key, value in record.arguments.items())
    return f"{_LEVEL * depth}└── {_cut(printable(record.operation))}({_cut(arguments)})"


def _input(whole: Lineage, sha256: str, depth: int, drawn: set[str]) -> str:
    """Return the line of an input, with a word for what is not drawn below it."""
    source = whole.files.get(sha256)
    said = "" if source is None or source.title is None else f"  {_cut(printable(source.title))}"
    if source is not None and source.record is None:
        said += "  trained" if source.training else ""
    elif source is not None:
        said += "  shown above" if sha256 in drawn else "  left out for depth" if depth >= DEEPEST else ""
    return f"{_LEVEL * (depth - 1)}    ├── {sha256[:12]}{said}"


def _made_by(whole: Lineage, sha256: str) -> Record | None:
    source = whole.files.get(sha256)
    return None if source is None else source.record


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[:WIDEST]} …"
