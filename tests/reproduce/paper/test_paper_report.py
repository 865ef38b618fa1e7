"""The report, made of numbers alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reproduce.paper.__main__ import main
from reproduce.paper.cell import Cell, Measured
from reproduce.paper.experiments.pairs import FASTER, UNMIX
from reproduce.paper.lab import base_digest
from reproduce.paper.plan import all_cells, search_cells
from reproduce.paper.recipe import PRIOR, RATES, Recipe
from reproduce.paper.report import write_report
from reproduce.paper.sections.single import LABELS
from svdiff_delta._util.json import canonical_json

BASE = "0" * 16
REPORTS = Path(__file__).parents[3] / "reports"


def numbers_of(cell: Cell) -> dict[str, Any]:
    """Numbers as a cell of its experiment has them, SVDiff's better than the others'."""
    ours = cell.recipes[0].method == "svdiff"
    jitter = cell.recipes[0].seed * 0.001
    if cell.name.startswith(("unmix", "pair")):
        judged = {"both": [1, 0], "crossed": [0, 1], "seam": [9.0, 90.0], "score": [0.5, 0.25]}
        return {"seconds": 40.0, "positive": judged, "negative": judged}
    if cell.experiment == "a" or cell.name.startswith("rank") or cell.experiment in "di":
        return {
            "text": 0.3 + jitter, "image": (0.8 if ours else 0.6) + jitter, "identity": 0.9, "checkpoint": 1,
            "seconds": 20.0, "size": 40_000 if ours else 33_000_000,
        }  # fmt: skip
    if cell.experiment == "b":
        mixed = int(cell.recipes[0].mix > 0)
        judged = {"both": [mixed] * 12, "crossed": [1 - mixed] * 12, "seam": [9.0] * 12, "score": [0.5 + ours] * 12}
        return {"seconds": 40.0, "positive": judged, "negative": judged}
    if cell.experiment == "c":
        edit = {"check": "ground", "succeeded": [1, 0, 1], "survived": [1, 1, 0], "like": [0.5, 0.6, 0.7]}
        return {"seconds": 20.0, "faithful": 0.9 if ours else 0.5, "plain": [edit] * 3, "inverted": [edit] * 3}
    if cell.experiment == "e":
        if cell.name.startswith("sum"):
            judged = {"both": [1, 0], "crossed": [0, 0], "seam": [1.0, 1.0], "score": [0.5, 0.5]}
            return {"alone": [0.9, 0.9], "together": [0.7, 0.8 + jitter], "pair": judged}
        return {"alphas": [0, 0.25, 0.5, 0.75, 1], "like": [[0.1 * i, 1 - 0.1 * i] for i in range(5)], "smooth": [1.0]}
    if cell.experiment == "f":
        both = {"geometry": 0.9, "appearance": 0.5 + jitter}
        return {"shape": both, "colour": {"geometry": 0.2, "appearance": 0.7}, "parents": 0.1}
    if cell.experiment == "g":
        return {"names": ["x", "y"], "matrix": [[0.9, 0.1], [0.1, 0.9]]}
    return {"scales": [{"scale": s, "text": 0.3 - s / 20, "image": 0.5, "identity": 1.0} for s in range(7)]}


def keep(folder: Path, cell: Cell, key: list[str]) -> None:
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canonical_json({"key": key, "numbers": numbers_of(cell), "seconds": 1.0}))


def test_a_full_report_judges_every_claim(tmp_path: Path) -> None:
    for cell in all_cells():
        keep(tmp_path, cell, cell.key(BASE))
    text = write_report(tmp_path, all_cells(), BASE).read_text("utf-8")
    assert "not measured**" not in text
    for letter in "abcdefgh":
        assert f"## ({letter}) " in text
    assert "| 3.3, 4.2, Fig. 6 | Cut-Mix-Unmix lets SVDiff show" in text
    line = next(line for line in text.splitlines() if "lets SVDiff show" in line)
    assert line.endswith("**agrees** |")
    preference = next(line for line in text.splitlines() if "preferred to full weights" in line)
    assert "1.00 [" in preference
    assert preference.endswith("**agrees** |")


def test_the_same_numbers_give_the_same_text(tmp_path: Path) -> None:
    for cell in all_cells()[:40]:
        keep(tmp_path, cell, cell.key(BASE))
    first = write_report(tmp_path, all_cells(), BASE).read_bytes()
    assert write_report(tmp_path, all_cells(), BASE).read_bytes() == first


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    text = write_report(tmp_path, all_cells(), BASE).read_text("utf-8")
    assert f"0 of {len(all_cells())} cells are measured" in text
    assert "**agrees**" not in text
    assert "**differs**" not in text


def test_numbers_of_another_base_are_not_used(tmp_path: Path) -> None:
    for cell in all_cells():
        keep(tmp_path, cell, cell.key("1" * 16))
    assert "0 of " in write_report(tmp_path, all_cells(), BASE).read_text("utf-8")


def head(text: str) -> str:
    """The report's first lines."""
    return " ".join(text.splitlines()[:5])


def test_the_first_lines_say_which_base_the_cells_belong_to(tmp_path: Path) -> None:
    own = head(write_report(tmp_path, all_cells(), base_digest()).read_text("utf-8"))
    assert f"`{base_digest()}`: the one that ships with this version" in own
    other = head(write_report(tmp_path, all_cells(), BASE).read_text("utf-8"))
    assert f"`{BASE}`: a former embedded base" in other
    assert f"its own: `{base_digest()}`" in other


def test_cells_of_two_bases_are_never_in_one_report(tmp_path: Path) -> None:
    cells = all_cells()
    for index, cell in enumerate(cells):
        keep(tmp_path, cell, cell.key(BASE if index % 2 else base_digest()))
    for base, count in ((BASE, len(cells) // 2), (base_digest(), len(cells) - len(cells) // 2)):
        text = write_report(tmp_path, cells, base).read_text("utf-8")
        assert f"{count} of {len(cells)} cells are measured" in text


def test_the_cells_that_are_kept_and_the_report_that_stands_are_of_one_base(tmp_path: Path) -> None:
    cells = [json.loads(path.read_bytes())["key"][0] for path in (REPORTS / "cells").rglob("*.json")]
    assert len(set(cells)) == 1
    assert f"that with the fingerprint `{cells[0]}`" in head((REPORTS / "paper.md").read_text("utf-8"))


def test_a_report_of_a_former_base_measures_nothing(tmp_path: Path) -> None:
    cell = all_cells()[0]
    keep(tmp_path, cell, cell.key(BASE))
    main(["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--base", BASE])
    assert "1 of " in (tmp_path / "paper.md").read_text("utf-8")
    assert not (tmp_path / "work").exists()


def made(lab: object, sight: object) -> Measured:
    return Measured({"value": 1}, {"painted": [Image.new("RGB", (4, 4))] * 3})


def failing(lab: object, sight: object) -> Measured:
    raise AssertionError("measured again")


@pytest.mark.parametrize("shown", [True, False])
def test_a_cell_is_measured_once(tmp_path: Path, shown: bool) -> None:
    recipe = Recipe(subjects=("black cat",))
    cell = Cell("a", "one", partial(made), (recipe,), shown)
    assert cell.known(tmp_path, BASE) is None
    cell.run(None, None, tmp_path, BASE)  # type: ignore[arg-type]
    assert cell.known(tmp_path, BASE) == {"value": 1}
    picture = tmp_path / "pictures" / "a" / "one.painted.png"
    assert picture.exists() == shown
    if shown:
        with Image.open(picture) as found:
            assert found.size == (12, 4)
    other = Cell("a", "one", failing, (Recipe(subjects=("black cat",), seed=1),))
    assert other.known(tmp_path, BASE) is None, "another training's numbers were taken"


def test_what_recipes_were_chosen_by_is_a_section_and_counts_as_no_experiment(tmp_path: Path) -> None:
    for cell in search_cells():
        keep(tmp_path, cell, cell.key(BASE))
    text = write_report(tmp_path, all_cells(), BASE, search_cells()).read_text("utf-8")
    assert f"0 of {len(all_cells())} cells are measured" in text
    section = text.partition("## (i)")[2]
    for method, rate in RATES.items():
        own = 0.8 if method == "svdiff" else 0.6
        assert f"| {LABELS[method]} | **{rate:g}** | 0.300 | {own:.3f} | 0.900 |" in section
    assert f"| **{PRIOR:g}** | 0.300 | 0.800 |" in section
    assert f"| {FASTER:g} | **{UNMIX:g}** | 0.375 | 0.50 | 0.50 |" in section
