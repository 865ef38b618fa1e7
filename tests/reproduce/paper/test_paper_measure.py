"""Cells are measured side by side in processes of their own, until all are done or the time is over."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cells import answered, failed

from reproduce.paper.cell import Cell
from reproduce.paper.measure import measure

CELLS = [Cell("a", str(number), answered, ()) for number in range(3)]


def test_every_cell_is_measured_and_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    assert measure(CELLS, tmp_path / "work", tmp_path, "base", 2, None, said.append) == 0
    assert [cell.known(tmp_path, "base") for cell in CELLS] == [{"answer": 42}] * 3
    assert [line.split("; ")[1] for line in said] == ["2 left", "1 left", "0 left"]
    assert sorted(line.split("(a) ")[1].split("; ")[0] for line in said) == ["0", "1", "2"]


def test_when_the_time_is_over_no_cell_is_begun(tmp_path: Path) -> None:
    assert measure(CELLS, tmp_path / "work", tmp_path, "base", 2, 0.0, lambda line: None) == 3
    assert not (tmp_path / "cells").exists()


@pytest.mark.slow
def test_a_cell_that_fails_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"\(a\) 0 could not be measured"):
        measure([Cell("a", "0", failed, ())], tmp_path / "work", tmp_path, "base", 1, None, lambda line: None)
    assert CELLS[0].known(tmp_path, "base") is None
