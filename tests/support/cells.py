"""Cells that processes of their own can find by name, and a small plan made of such."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.choices import Choices
from reproduce.paper.claims.claim import Claim, Group, Kind, Numbers, Part
from reproduce.paper.experiments.search_stitching import UNMIXINGS
from reproduce.paper.lab import Lab
from reproduce.paper.planner import Plan
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight


def answered(lab: Lab, sight: Sight) -> Measured:
    """Measure nothing."""
    return Measured({"answer": 42})


def failed(lab: Lab, sight: Sight) -> Measured:
    """Go wrong."""
    raise ArithmeticError("no number")


def given(value: float, lab: Lab, sight: Sight) -> Measured:
    """Return a number and a picture, after as long as the environment says."""
    time.sleep(float(os.environ.get("CELL_SECONDS", "0")))
    shade = int(255 * min(1.0, abs(value)))
    return Measured({"value": value, "identity": 1.0}, {"painted": [Image.new("RGB", (4, 4), (shade, 0, 0))] * 2})


def cell(name: str, value: float, *, seed: int = 0, rate: float = 0.1) -> Cell:
    """Return a cell that finds a value by one training that nobody does."""
    made = Recipe(rate=rate, subjects=("black cat",), seed=seed, noun=name)
    return Cell("a", f"{name}-{seed}", partial(given, value), (made,), shown=seed == 0)


def claim(
    name: str,
    values: list[float],
    *,
    looks: tuple[int, ...] = (4, 8),
    margin: float = 0.1,
    kind: Kind = "higher",
    groups: tuple[Group, ...] = (("black cat",), ("poodle",)),
) -> Claim:
    """Return a claim whose units have these values, one cell each."""

    def unit(group: Group, seed: int) -> Mapping[str, Cell]:
        number = seed * len(groups) + groups.index(group)
        return {"own": cell(f"{name}-{number}", values[number % len(values)], seed=seed)}

    def value(found: Mapping[str, Numbers]) -> float:
        return float(found["own"]["value"])

    part = Part(f"what {name} measures", value, margin, kind)
    return Claim(name, "a", "1", f"The paper says {name}.", "all", (part,), groups, unit, looks)


UP = [0.5, 0.6, 0.4, 0.5, 0.55, 0.45, 0.5, 0.5]
WIDE = [1.0, -0.9, 1.1, -0.8, 0.9, -1.0, 1.2, -1.1]
NEAR = [0.002, -0.004, 0.003, -0.001, 0.0, 0.002, -0.002, 0.001]


def small_claims(choices: Choices) -> tuple[Claim, ...]:
    """Return one claim that agrees at once, one that never decides, one that is equal, and one that differs."""
    return (
        claim("up", UP),
        claim("wide", WIDE),
        claim("equal", NEAR, kind="similar"),
        claim("down", [-value for value in UP]),
    )


def small_beside(choices: Choices) -> list[Cell]:
    """Return one cell that is only shown."""
    return [cell("beside", 0.3)]


def small_plan(budget: int = 40) -> Plan:
    """Return a plan of `small_claims`, whose cells take no time."""
    return Plan((), small_claims, small_beside, None, budget)


def searched_numbers(cell: Cell) -> dict[str, Any]:
    """Numbers as a cell of the search has them, the better the higher the rate."""
    recipe = cell.recipes[0]
    if recipe.scene:
        return {"faithful": min(1.0, 0.3 + recipe.rate * 50)}
    if len(recipe.subjects) == 1 and "as" not in cell.name:
        return {"text": 0.5, "image": 0.5, "identity": min(1.0, 20 * recipe.rate + (recipe.method != "svdiff"))}
    if "-as-" in cell.name:
        gain = 0.3 if cell.about == "shared prompt, middle" else 0.0
        return {"shape": {"geometry": gain, "appearance": 0.0}, "colour": {"appearance": gain}, "parents": 0.0}
    seam = [0.0] * 8 + [99.0] * (1 if recipe.unmix == UNMIXINGS[3] else 4)
    judged = {"score": [0.5 + recipe.steps / 1e4] * 12, "both": [1] * 12, "crossed": [0] * 12, "seam": seam}
    return {"positive": judged, "negative": judged | {"seam": seam[: 8 + ("red" in cell.about)]}}
