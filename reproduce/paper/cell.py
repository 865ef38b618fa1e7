"""One cell of the report: what is measured, once, and where its numbers lie."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import canonical_json

from .lab import Lab
from .recipe import Recipe
from .sight import Sight

Numbers = Mapping[str, Any]

VERSION: Final = 3
"""Of how cells measure: raised when a measure changes, so that numbers of both are never mixed."""

State = Literal["known", "missing", "cut off", "another base", "another version", "another recipe"]
OUTSIDE: Final[tuple[State, ...]] = ("another base", "another recipe", "another version")
"""Cells that are whole and belong to something else: they are named, and never used."""


OTHERS: Final[tuple[tuple[str, State], ...]] = (("base", "another base"), ("version", "another version"))


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
class Kept:
    """What lies where a cell's numbers belong.

    Attributes:
        state: whether they can be used.
        numbers: what the cell found; None unless it is known.
        seconds: what it took, trainings included.
        device: where it was measured.
    """

    state: State
    numbers: Numbers | None = None
    seconds: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class Cell:
    """Something to measure.

    Attributes:
        experiment: the letter of its section.
        name: what tells it from the experiment's others, and names its file.
        measure: does it.
        recipes: the trainings it needs; their settings are part of what is remembered.
        shown: whether its pictures are kept.
        about: what else its numbers depend on, such as the wording of prompts.
    """

    experiment: str
    name: str
    measure: Callable[[Lab, Sight], Measured]
    recipes: tuple[Recipe, ...]
    shown: bool = False
    about: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """What tells it from every other cell."""
        return self.experiment, self.name

    def path(self, folder: Path, base: str) -> Path:
        """Return where its numbers lie: cells of another base lie in another folder."""
        return folder / "cells" / base / self.experiment / f"{self.name}.json"

    def key(self, base: str) -> dict[str, Any]:
        """Return what its numbers depend on: the base, the trainings, and how it is measured."""
        recipes = [recipe.key() for recipe in self.recipes]
        return {"base": base, "recipes": recipes, "version": VERSION, "about": self.about}

    def kept(self, folder: Path, base: str) -> Kept:
        """Return what lies in its place: a file that was cut off in the middle counts as missing, and is named so."""
        path = self.path(folder, base)
        if not path.exists():
            return Kept("missing")
        found = _whole(path.read_bytes())
        if found is None:
            return Kept("cut off")
        key, wanted = found["key"], self.key(base)
        for name, state in OTHERS:
            if key.get(name) != wanted[name]:
                return Kept(state)
        if key != wanted:
            return Kept("another recipe")
        return Kept("known", dict(found["numbers"]), float(found["seconds"]), str(found["device"]))

    def known(self, folder: Path, base: str) -> Numbers | None:
        """Return its numbers; None if they are missing or cut off, or of another base or other settings."""
        return self.kept(folder, base).numbers

    def run(self, lab: Lab, sight: Sight, folder: Path, base: str) -> float:
        """Measure, keep numbers and pictures, and return the seconds it took."""
        begun = time.perf_counter()
        found = self.measure(lab, sight)
        seconds = time.perf_counter() - begun
        if self.shown:
            for label, pictures in found.rows.items():
                _save_row(folder / "pictures" / self.experiment / f"{self.name}.{label}.png", pictures)
        kept = {"key": self.key(base), "numbers": dict(found.numbers), "device": DEVICE, "seconds": round(seconds, 1)}
        keep(self.path(folder, base), kept)
        return seconds


DEVICE: Final = "cpu"
"""Where cells are measured; those of a GPU would say so."""


def keep(path: Path, kept: Mapping[str, Any]) -> None:
    """Write a cell's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, overwrite=True) as stream:
        stream.write(packed(kept))


def packed(kept: Mapping[str, Any]) -> bytes:
    """Return a cell's file, with a digest of what it holds."""
    return canonical_json({**kept, "digest": _digest(kept)})


def _digest(kept: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(kept))).hexdigest()[:16]


def _whole(data: bytes) -> dict[str, Any] | None:
    """Return what a cell's file holds; None if a part of it is missing."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("key"), dict):
        return None
    return found if found.pop("digest", None) == _digest(found) else None


def _save_row(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Write pictures side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        row.paste(picture, (index * width, 0))
    with replace_file(path, overwrite=True) as stream:
        row.save(stream, "PNG")
