"""The report of a manifest as a table, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from svdiff_delta._text.printable import printable

HEAD: Final = "output"
"""What every table begins with."""

COUNTED: Final = ("converted", "passed over", "failed")
"""What can become of a row, as the last line counts it."""

Line = Mapping[str, Any]
"""A row's line of the report, as `Result.record` returns it."""


def render(lines: Sequence[Line]) -> str:
    """Return a line for each row, one that counts them, and what is wrong with rows or to know of them."""
    width = max([len(HEAD), *(len(_output(line)) for line in lines)])
    head = f"{HEAD:<{width}}{'status':>13}{'parameters':>12}{'captured':>12}{'left out':>10}{'bytes':>14}"
    counts = Counter(line["status"] for line in lines)
    known = [name for name in [*COUNTED, *sorted(counts.keys() - {*COUNTED})] if name in COUNTED or counts[name]]
    summary = ", ".join(f"{counts[name]} {name}" for name in known)
    return "\n".join([head, *(_row(line, width) for line in lines), summary])


def complaints(lines: Sequence[Line]) -> Iterator[str]:
    """Yield what went wrong, and what was assumed, row by row."""
    for number, line in enumerate(lines, 1):
        about = f"row {number}: {line['row']['input']}"
        for kind, texts in (("error", [line["error"]] if "error" in line else []), ("note", line.get("remarks", []))):
            for text in texts:
                yield printable(" ".join(f"{kind}: {about}: {text}".split()))


def _output(line: Line) -> str:
    return printable(str(line["row"]["output"]))


def _row(line: Line, width: int) -> str:
    begin = f"{_output(line):<{width}}{printable(line['status']):>13}"
    if line.get("parameters") is None:
        return begin
    left_out = len(line.get("left_out", {}))
    captured = "" if line.get("captured") is None else f"{line['captured']:.2%}"  # none where only names changed
    return f"{begin}{line['parameters']:>12,}{captured:>12}{left_out:>10,}{line.get('bytes', 0):>14,}"
