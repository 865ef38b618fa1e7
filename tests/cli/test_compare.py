"""The commands diff, correlate, interfere, plot and lineage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support.deltas import CONV, random_delta, saved

from svdiff_cli.main import main
from svdiff_delta import load


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two deltas of one base, one of them titled."""
    monkeypatch.chdir(tmp_path)
    saved(random_delta(1, title="dog"), tmp_path / "a")
    saved(random_delta(2), tmp_path / "b")
    return tmp_path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_a_delta_does_not_differ_from_itself() -> None:
    assert run("diff", "a", "a").stdout == "the same δ in every parameter\n"


def test_diff_measures_every_parameter() -> None:
    facts = json.loads(run("diff", "a", "b", "--json").stdout)
    a, b = load("a"), load("b")
    assert facts["norms"][CONV] == pytest.approx(float(np.linalg.norm(a[CONV].astype("f8") - b[CONV])))
    assert not facts["equal"]


def test_diff_names_what_only_one_shifts() -> None:
    run("slice", "a", CONV, "-o", "part")
    facts = json.loads(run("diff", "part", "a", "--json").stdout)
    assert facts["only in a"] == []
    assert set(facts["only in b"]) == set(load("a")) - {CONV}


def test_correlate_prints_a_matrix_with_titles() -> None:
    facts = json.loads(run("correlate", "a", "b", "--json").stdout)
    assert facts["names"] == ["dog", "b"]
    matrix = np.array(facts["mean cosine"])
    assert matrix[0, 0] == matrix[1, 1] == 1
    assert matrix[0, 1] == matrix[1, 0]
    assert "dog" in run("correlate", "a", "b").stdout


def test_correlate_draws_a_heat_map() -> None:
    run("correlate", "a", "b", "--plot", "map.png")
    with Image.open("map.png") as picture:
        assert picture.format == "PNG"


def test_interfere_counts_opposite_signs() -> None:
    run("scale", "a", "--factor", -1, "-o", "minus")
    facts = json.loads(run("interfere", "a", "minus", "--json").stdout)
    assert facts["cosine"] == pytest.approx(-1)
    assert facts["conflicts"] == 1


def test_plot_draws_the_same_picture_every_time() -> None:
    run("plot", "a", "-o", "1.png")
    run("plot", "a", "-o", "2.png")
    assert Path("1.png").read_bytes() == Path("2.png").read_bytes()


def test_info_has_a_row_for_each_block() -> None:
    blocks = json.loads(run("info", "a", "--json").stdout)["blocks"]
    assert sum(block["parameters"] for block in blocks.values()) == len(load("a"))
    assert "largest |δ|" in run("info", "a").stdout


def test_lineage_draws_every_operation_down_to_its_inputs() -> None:
    run("add", "a", "b", "-o", "sum")
    run("scale", "sum", "--factor", 0.5, "-o", "half")
    lines = run("lineage", "half").stdout.splitlines()
    assert lines[0] == "half"
    assert lines[1] == "└── scale(factor 0.5)"
    assert lines[3].strip("│├ ") == "└── add(weights 1 1)"
    assert lines[4].endswith("dog")


def test_a_delta_that_no_operation_made_has_no_tree() -> None:
    assert run("lineage", "b").stdout == "b\n└── no operation is recorded\n"
