"""Where a cell's numbers lie, and which are used: whole, of this base, recipe and version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.cells import cell

from reproduce.paper import cell as cells
from reproduce.paper.cell import Cell, keep
from reproduce.paper.found import Found

BASE, OTHER = "0" * 16, "1" * 16


def run(one: Cell, out: Path, base: str = BASE) -> Path:
    one.run(None, None, out, base)  # type: ignore[arg-type]
    return one.path(out, base)


@pytest.mark.parametrize("shown", [True, False])
def test_a_cell_keeps_numbers_and_pictures(tmp_path: Path, shown: bool) -> None:
    own = replace(cell("one", 0.5), shown=shown)
    assert own.kept(tmp_path, BASE).state == "missing"
    run(own, tmp_path)
    assert own.known(tmp_path, BASE) == {"value": 0.5, "identity": 1.0}
    picture = tmp_path / "pictures" / "a" / "one-0.painted.png"
    assert picture.exists() == shown
    if shown:
        with Image.open(picture) as found:
            assert found.size == (8, 4)


@pytest.mark.parametrize("length", [0, 1, 40, -1, -20])
def test_a_cell_that_was_cut_off_is_found_and_measured_again(tmp_path: Path, length: int) -> None:
    own = cell("one", 0.5)
    path = run(own, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert own.kept(tmp_path, BASE).state == "cut off"
    assert Found(tmp_path, BASE).outside([own]) == ["1 cut off in the middle: they are measured anew"]
    run(own, tmp_path)
    assert own.known(tmp_path, BASE) == {"value": 0.5, "identity": 1.0}


@pytest.mark.parametrize("text", ["[]", "{}", '{"key": 3}', '{"key": {}, "numbers": {}}'])
def test_a_file_that_is_no_cell_is_cut_off(tmp_path: Path, text: str) -> None:
    own = cell("one", 0.5)
    path = own.path(tmp_path, BASE)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert own.kept(tmp_path, BASE).state == "cut off"


def test_a_number_that_was_changed_by_hand_is_not_used(tmp_path: Path) -> None:
    own = cell("one", 0.5)
    path = run(own, tmp_path)
    found = json.loads(path.read_bytes())
    found["numbers"]["value"] = 0.9
    path.write_text(json.dumps(found))
    assert own.kept(tmp_path, BASE).state == "cut off"


def test_cells_of_another_base_lie_apart_and_are_named(tmp_path: Path) -> None:
    own = cell("one", 0.5)
    run(own, tmp_path, OTHER)
    find = Found(tmp_path, BASE)
    assert find(own) is None
    assert find.outside([own]) == [f"1 of another base, `{OTHER}`: they are left out"]


def test_a_cell_of_another_base_in_this_one_s_folder_is_named(tmp_path: Path) -> None:
    own = cell("one", 0.5)
    path = run(own, tmp_path, OTHER)
    own.path(tmp_path, BASE).parent.mkdir(parents=True)
    path.rename(own.path(tmp_path, BASE))
    assert own.kept(tmp_path, BASE).state == "another base"


@pytest.mark.parametrize(
    "other",
    [cell("one", 0.5, rate=0.2), replace(cell("one", 0.5), about="other"), replace(cell("one", 0.5), recipes=())],
)
def test_a_cell_of_another_recipe_is_named_and_not_used(tmp_path: Path, other: Cell) -> None:
    run(cell("one", 0.5), tmp_path)
    assert other.kept(tmp_path, BASE).state == "another recipe"
    assert Found(tmp_path, BASE).outside([other]) == ["1 of another recipe: they are left out, and measured anew"]


def test_a_cell_of_another_version_of_the_measures_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cell("one", 0.5)
    run(own, tmp_path)
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    assert own.kept(tmp_path, BASE).state == "another version"


def test_a_cell_that_nobody_asks_for_is_named(tmp_path: Path) -> None:
    run(cell("one", 0.5), tmp_path)
    assert Found(tmp_path, BASE).outside([]) == ["1 that the plan does not ask for: they are left out"]


def test_a_cell_that_a_gpu_measured_is_marked(tmp_path: Path) -> None:
    own = cell("one", 0.5)
    keep(own.path(tmp_path, BASE), {"key": own.key(BASE), "numbers": {}, "device": "cuda", "seconds": 1.0})
    assert Found(tmp_path, BASE).elsewhere([own]) == {"cuda": 1}
