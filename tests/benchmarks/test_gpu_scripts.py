"""The scripts for a card run to their ends without one, at tiny sizes, and say what they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as all_sections
from benchmarks.gpu import bases, changes, forward, script, step
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.scene import Scene

MEASURES: dict[str, Callable[[Scene, Figures], None]] = {
    "bases": bases.measure,
    "step": step.measure,
    "forward": forward.measure,
    "changes": changes.measure,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu") / "unet"


def test_every_section_but_the_tests_has_a_script_that_is_tried_here() -> None:
    assert set(all_sections.SECTIONS) == {"tests", *MEASURES}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_a_section_runs_to_its_end(name: str, folder: Path) -> None:
    figures = script.run(name, MEASURES[name], folder, dry=True)
    assert figures.missed == []
    found = json.loads(json.dumps(figures.json()))["figures"]
    assert all(figure["value"] >= 0 for figure in found)
    assert any(figure["limit"] is not None for figure in found)
    assert all(figure["met"] is None for figure in found)
    names = [figure["name"] for figure in found]
    assert len(set(names)) == len(names)

    # What does not depend on size or speed holds here too.
    exact = [figure for figure in figures.found if figure.unit in ("of it", "of σ₁")]
    assert len(exact) == {"bases": 2, "forward": 2}.get(name, 0)
    assert all(figure.value >= figure.limit if figure.least else figure.value <= figure.limit for figure in exact)


def test_tests_for_a_card_are_where_they_are_looked_for() -> None:
    tests = Path(__file__).parents[1]
    marked = {path for path in tests.rglob("test_*.py") if "pytest.mark." + "gpu" in path.read_text()}
    assert marked
    assert marked == set((tests / "gpu").glob("test_*.py"))


def test_limits_are_told_apart() -> None:
    figures = Figures("any")
    figures.add("within", 1.0, "s", limit=1.0)
    figures.add("over", 1.1, "s", limit=1.0)
    figures.add("enough", 4.0, "times", limit=4.0, least=True)
    figures.add("too few", 3.9, "times", limit=4.0, least=True)
    figures.add("beside", 3.9, "times")
    assert figures.missed == ["over", "too few"]
    assert [figure.met for figure in figures.found] == [True, False, True, False, None]


def test_not_a_number_misses_its_limit() -> None:
    figures = Figures("any")
    figures.add("lost", float("nan"), "s", limit=1.0)
    figures.add("lost too", float("nan"), "s", limit=1.0, least=True)
    assert figures.missed == ["lost", "lost too"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("module", ["benchmarks.gpu", "benchmarks.gpu.changes"])
def test_without_a_card_one_line_says_so_and_nothing_passes(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == script.NO_CARD
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("no CUDA device: nothing was measured or tested (torch ")
