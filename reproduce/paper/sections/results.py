"""What the sections of the report read: every cell's numbers, as far as they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.paper.claim import Claim


@dataclass(frozen=True)
class Results:
    """Numbers of cells by experiment and name.

    Attributes:
        found: the numbers.
        pictures: the folder of pictures.
    """

    found: Mapping[tuple[str, str], Mapping[str, Any]]
    pictures: Path

    def numbers(self, experiment: str, name: str) -> Mapping[str, Any] | None:
        """Return a cell's numbers; None if it was not measured."""
        return self.found.get((experiment, name))

    def values(self, experiment: str, names: Iterable[str], value: Callable[[Any], float]) -> list[float]:
        """Return one number of each cell that was measured."""
        return [value(self.found[experiment, name]) for name in names if (experiment, name) in self.found]

    def differences(
        self, experiment: str, pairs: Iterable[tuple[str, str]], value: Callable[[Any], float]
    ) -> list[float]:
        """Return first less second of pairs of cells of which both were measured."""
        return [
            value(self.found[experiment, a]) - value(self.found[experiment, b])
            for a, b in pairs
            if (experiment, a) in self.found and (experiment, b) in self.found
        ]

    def row(self, experiment: str, name: str, label: str, *, height: int = 64) -> str:
        """Return an image of a row of pictures of a cell that was measured, or a dash."""
        path = self.pictures / experiment / f"{name}.{label}.png"
        if (experiment, name) not in self.found or not path.exists():
            return "–"
        return f'<img src="{self.pictures.name}/{experiment}/{path.name}" height="{height}">'


@dataclass(frozen=True)
class Section:
    """One experiment in the report.

    Attributes:
        title: its heading.
        body: its lines.
        claims: what it says about the paper's.
    """

    title: str
    body: list[str]
    claims: list[Claim]
