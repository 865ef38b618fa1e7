"""Every kind of cell is trained, painted and judged for real, with two steps each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproduce.paper import lab as labs
from reproduce.paper.cell import Cell, Numbers
from reproduce.paper.choices import BEFORE
from reproduce.paper.claims.every import every_claim
from reproduce.paper.experiments import beside, edits
from reproduce.paper.experiments.detector import detector_cell
from reproduce.paper.experiments.search import STAGES
from reproduce.paper.experiments.search_rates import pair_cells, triple_cells
from reproduce.paper.experiments.stage import Stage
from reproduce.paper.lab import Lab
from reproduce.paper.recipe import Recipe, Unmixing
from reproduce.paper.sight import Sight
from svdiff_train.training import class_images

CHOICES = replace(BEFORE, pair_steps=2, triple_steps=2, unmix=Unmixing(0.1, "share", (8,)))
CLAIMS = {claim.name: claim for claim in every_claim(CHOICES)}
SEED = 1
"""Most trainings have another seed than 0, and with it other pictures of the class."""

pytestmark = pytest.mark.slow


class Room:
    """A lab whose trainings and pictures take two steps, and the numbers of cells that were measured in it."""

    def __init__(self, work: Path) -> None:
        self.work, self.lab, self.sight = work, Lab(work), Sight()
        self.numbers: dict[tuple[str, str], Numbers] = {}

    def measured(self, cell: Cell) -> Numbers:
        if cell.place not in self.numbers:
            assert cell.run(self.lab, self.sight, self.work / "out", "0" * 16) > 0
            known = cell.known(self.work / "out", "0" * 16)
            assert known is not None
            self.numbers[cell.place] = known
        return self.numbers[cell.place]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Recipe.__init__.__kwdefaults__, "steps", 2)  # type: ignore[arg-type, misc]
        for place in (labs, edits, class_images):
            patch.setattr(place, "SAMPLING", replace(place.SAMPLING, steps=2))
        yield Room(tmp_path_factory.mktemp("room"))


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("name", CLAIMS)
def test_units_of_every_claim_have_values(room: Room, name: str) -> None:
    claim = CLAIMS[name]
    found = {role: room.measured(cell) for role, cell in claim.unit(claim.groups[0], SEED).items()}
    assert all(math.isfinite(part.value(found)) for part in claim.parts)


@pytest.mark.parametrize(
    "stage",
    [stage for stage in STAGES if stage.cells not in (pair_cells, triple_cells)],  # they try hundreds of steps
    ids=lambda stage: stage.title,
)
def test_cells_of_the_search_have_numbers(room: Room, stage: Stage) -> None:
    assert finite(room.measured(list(stage.cells(CHOICES).values())[-1]))


def test_what_is_only_shown_has_numbers(room: Room) -> None:
    cells = beside.cells(CHOICES)
    for letter in ("a", "b", "d", "h"):
        assert finite(room.measured(next(cell for cell in reversed(cells) if cell.experiment == letter)))


def test_the_judge_is_checked(room: Room) -> None:
    numbers = room.measured(detector_cell())
    assert set(numbers) == {"subjects", "whole", "half", "class"}
