"""The table of families is whole, and says what is measured; what is wrong without an error is never in it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from support.families.cell import Cell, LackingError, NoMeaningError, measured
from support.families.names import COLUMNS, FAMILIES
from support.families.page import BEGIN, PAGE, Cells, faults, parse, render, shares

from svdiff_delta.errors import InputError

TABLE = parse(PAGE.read_text("utf-8"))


def test_the_page_has_every_family_in_every_column() -> None:
    assert [*TABLE] == [*FAMILIES]
    assert all({*cells} == {*COLUMNS} for cells in TABLE.values())
    assert [*TABLE["SD 1"]] == [*COLUMNS]


def test_what_does_not_work_and_what_has_no_meaning_says_why() -> None:
    assert [(name, where) for name, cells in TABLE.items() for where, cell in cells.items() if not cell.text] == []


def test_nine_of_ten_cells_work_and_one_of_ten_at_most_has_no_meaning() -> None:
    yes, no, none = shares(TABLE)
    total = len(FAMILIES) * len(COLUMNS)
    assert yes + no + none == total
    assert yes >= 0.9 * total
    assert none <= 0.1 * total


def test_the_page_says_those_shares_and_nothing_else() -> None:
    assert PAGE.read_text("utf-8").partition(BEGIN)[2] == "\n" + render(TABLE)


def test_the_page_names_the_versions_that_are_installed() -> None:
    for program in ("diffusers", "PEFT", "lycoris-lora"):
        (said,) = re.findall(rf"{program} (\d[\d.]*\d)", PAGE.read_text("utf-8").partition(BEGIN)[0])
        assert version(program) == said


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_as_its_row_says(name: str) -> None:
    from support.families.measure import measure

    found = measure(name)
    assert faults({name: found}) == []
    assert found == TABLE[name]


# --- What a fault would look like ---


def refuse() -> str:
    raise InputError("x.safetensors: is none", fix="name another")


def lack() -> str:
    raise LackingError("2 of 30 layers")


def mean_nothing() -> str:
    raise NoMeaningError("there is none")


def be_wrong() -> str:
    assert 1 + 1 == 3
    return "30"


def fail() -> str:
    raise TypeError("not by us")


def test_only_a_refusal_is_a_no() -> None:
    assert measured(lambda: "30") == Cell("yes", "30")
    assert measured(refuse).kind == measured(lack).kind == "no"
    assert measured(mean_nothing) == Cell("none", "there is none")
    assert measured(be_wrong).kind == measured(fail).kind == "fault"
    assert faults({"Flux": {("Models", "open"): measured(fail)}}) == ["Flux, Models, open: TypeError: not by us"]


def test_a_page_with_a_gap_is_noticed() -> None:
    cells: Cells = {where: Cell("yes", "30") for where in COLUMNS}
    cells[COLUMNS[0]], cells[COLUMNS[1]] = Cell("no", "why: so"), Cell("none", "there is none")
    text = BEGIN + "\n" + render({"Flux": cells})
    assert parse(text) == {"Flux": cells}
    assert parse(text.replace(": why: so", ""))["Flux"][COLUMNS[0]] == Cell("no", "")
    assert parse(text.replace("| Flux | 30 | 30 | 30 | 30 | 30 |\n", "", 1))["Flux"].keys() != cells.keys()


def test_a_lora_with_one_wrong_layer_or_one_too_many_is_noticed(tmp_path: Path) -> None:
    import torch
    from support.adapters import save_tensors
    from support.families.lora_cells import check_file
    from support.weights import normal

    up, down = normal(6, 2), normal(2, 5, seed=1)
    parts = {"m.lora_up.weight": up, "m.lora_down.weight": down, "m.alpha": torch.tensor(4.0)}
    path, change = save_tensors(tmp_path / "x.safetensors", parts), 2 * up.double() @ down.double()
    check_file(path, {"m": change})
    wrong = [{"m": change * (1 + 2e-6)}, {"n": change}, {}, {"m": change, "n": change}]
    for expected in wrong:
        with pytest.raises(AssertionError):
            check_file(path, expected)
