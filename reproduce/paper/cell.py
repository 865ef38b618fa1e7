"""One cell of the report: what is measured, once, and where its numbers lie."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import canonical_json

from .lab import Lab
from .recipe import Recipe
from .sight import Sight

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a cell found.

    Attributes:
        numbers: what the report's tables are made of, as JSON has it.
        rows: pictures to show, by label.
    """

    numbers: Numbers
    rows: Mapping[str, Sequence[Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Something to measure.

    Attributes:
        experiment: the letter of its section.
        name: what tells it from the experiment's others, and names its file.
        measure: does it.
        recipes: the trainings it needs; their settings are part of what is remembered.
        shown: whether its pictures are kept.
    """

    experiment: str
    name: str
    measure: Callable[[Lab, Sight], Measured]
    recipes: tuple[Recipe, ...]
    shown: bool = False

    def path(self, folder: Path) -> Path:
        """Return where its numbers lie."""
        return folder / "cells" / self.experiment / f"{self.name}.json"

    def key(self, base: str) -> list[str]:
        """Return what its numbers depend on: the base and the trainings."""
        return [base, *(recipe.key() for recipe in self.recipes)]

    def known(self, folder: Path, base: str) -> Numbers | None:
        """Return its numbers; None if they are missing, or of another base or other settings."""
        path = self.path(folder)
        if not path.exists():
            return None
        found = json.loads(path.read_bytes())
        return None if found["key"] != self.key(base) else dict(found["numbers"])

    def run(self, lab: Lab, sight: Sight, folder: Path, base: str) -> float:
        """Measure, keep numbers and pictures, and return the seconds it took."""
        begun = time.perf_counter()
        found = self.measure(lab, sight)
        seconds = time.perf_counter() - begun
        if self.shown:
            for label, pictures in found.rows.items():
                _save_row(folder / "pictures" / self.experiment / f"{self.name}.{label}.png", pictures)
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"key": self.key(base), "numbers": dict(found.numbers), "seconds": round(seconds, 1)}
        with replace_file(path, overwrite=True) as stream:
            stream.write(canonical_json(kept))
        return seconds


def _save_row(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Write pictures side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        row.paste(picture, (index * width, 0))
    with replace_file(path, overwrite=True) as stream:
        row.save(stream, "PNG")
