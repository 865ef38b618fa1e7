"""A lineage drawn as a tree: operations down to trained files."""

from __future__ import annotations

from collections.abc import Iterator

from ._text import plain, printable
from .lineage import Lineage, Record
from .metadata import Metadata


def draw(metadata: Metadata, *, title: str) -> Iterator[str]:
    """Yield the lines of a tree that shows how a delta was made.

    Args:
        metadata: of the delta.
        title: what to call it, if it has no title.
    """
    yield printable(metadata.title or title)
    if metadata.lineage is None:
        yield "└── trained" if metadata.training else "└── no operation is recorded"
        return
    yield from _branch(metadata.lineage, metadata.lineage.record, "", ())
    if omitted := metadata.lineage.extra.get("omitted"):
        yield f"left out for size: {plain(omitted)}"


def _branch(whole: Lineage, record: Record, indent: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of an operation and below it of what it was made from."""
    arguments = ", ".join(f"{printable(key)} {plain(value)}" for key, value in record.arguments.items())
    yield f"{indent}└── {printable(record.operation)}({arguments})"
    indent += "    "
    for sha256 in record.inputs:
        source = whole.files.get(sha256)
        title = "" if source is None or source.title is None else f"  {printable(source.title)}"
        made = "" if source is None or source.record is not None else "  trained" if source.training else ""
        yield f"{indent}├── {sha256[:12]}{title}{made}"
        if source is not None and source.record is not None and sha256 not in above:
            yield from _branch(whole, source.record, f"{indent}│   ", (*above, sha256))
