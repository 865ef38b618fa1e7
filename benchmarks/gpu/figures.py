"""Figures of one section: what was measured beside its limit, as lines and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Figure:
    """One figure.

    Attributes:
        name: what was measured.
        value: how much it is.
        unit: of it.
        limit: what it must not exceed; for `least`, what it must reach; None if it stands beside others only.
        least: whether more is better.
        met: whether the limit is kept; None without a limit, and where the sizes are too small to say anything.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    least: bool = False
    met: bool | None = None

    def line(self) -> str:
        """Return the figure as a line of a table."""
        word = {True: "ok", False: "MISSED", None: ""}[self.met]
        limit = "" if self.limit is None else f"{'≥' if self.least else '≤'} {self.limit:g}"
        return f"{word:<7}{self.name:<62}{self.value:>12.4g} {self.unit:<9}{limit:>10}".rstrip()


@dataclass
class Figures:
    """All figures of a section.

    Attributes:
        section: its name.
        judged: whether limits count: not at sizes that only show that a script runs.
    """

    section: str
    judged: bool = True
    found: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, *, limit: float | None = None, least: bool = False) -> None:
        """Add a figure, and print it."""
        within = None if limit is None else (value >= limit if least else value <= limit)
        figure = Figure(name, float(value), unit, limit, least, within if self.judged else None)
        self.found.append(figure)
        print(figure.line(), flush=True)

    @property
    def missed(self) -> list[str]:
        """The names of limits that are not kept."""
        return [figure.name for figure in self.found if figure.met is False]

    def json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {"section": self.section, "figures": [asdict(figure) for figure in self.found]}
