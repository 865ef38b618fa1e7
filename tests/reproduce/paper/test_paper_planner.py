"""The sequential plan: what is asked for, within which budget, and that being stopped changes nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.cells import NEAR, UP, cell, claim, small_beside, small_plan
from support.forked import Running, start

from reproduce.paper import carry_out as carry
from reproduce.paper import report
from reproduce.paper.carry_out import carry_out, forget
from reproduce.paper.cell import Cell
from reproduce.paper.found import Found
from reproduce.paper.pages import claim_section
from reproduce.paper.planner import Plan, Progress, all_cells, play
from reproduce.paper.report import write_report

BASE = "0" * 16


def at_most(cells_in_all: int) -> Callable[..., int]:
    """Return what measures in this process, and stops after so many cells."""
    left = [cells_in_all]

    def measure(
        cells: Sequence[Cell], work: Path, out: Path, base: str, jobs: int, seconds: float | None, say: Any
    ) -> int:
        for number, one in enumerate(cells):
            if not left[0]:
                return len(cells) - number
            left[0] -= 1
            one.run(None, None, out, base)  # type: ignore[arg-type]
        return 0

    return measure


def carried(monkeypatch: pytest.MonkeyPatch, plan: Plan, out: Path, cells: int = 1000) -> bool:
    monkeypatch.setattr(carry, "measure", at_most(cells))
    return carry_out(plan, out / "work", out, BASE, 1, None, lambda line: None)


def progress_of(plan: Plan, out: Path) -> Progress:
    return play(plan, Found(out, BASE))


def verdicts(plan: Plan, out: Path) -> dict[str, str]:
    find = Found(out, BASE)
    return {one.claim.name: one.verdict for one in play(plan, find).judged(find)}


def files(folder: Path) -> dict[str, bytes]:
    """All files but times, and the lock files beside them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".md", ".png") and path.name != "times.md"
    }


def test_settled_claims_ask_for_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = small_plan()
    assert carried(monkeypatch, plan, tmp_path)
    assert verdicts(plan, tmp_path) == {"up": "agrees", "wide": "undecided", "equal": "agrees", "down": "differs"}
    names = {path.stem.rsplit("-", 1)[0] for path in (tmp_path / "cells").rglob("*.json")}
    assert names == (
        {f"{name}-{number}" for name in ("up", "equal", "down") for number in range(4)}
        | {f"wide-{number}" for number in range(8)}
        | {"beside"}
    )
    assert progress_of(plan, tmp_path).waiting is None


def test_a_round_holds_the_looks_of_all_open_claims(tmp_path: Path) -> None:
    plan = small_plan()
    rounds = [one.title for one in plan.rounds(lambda cell: cell.measure(None, None).numbers, Progress())]  # type: ignore[arg-type]
    assert rounds == ["look 1 of 4 open claims", "look 2 of 1 open claims", "what is only shown"]


@pytest.mark.parametrize("cells", [0, 1, 5, 15, 16, 17, 20, 21])
def test_a_run_that_was_stopped_and_goes_on_gives_the_same_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cells: int
) -> None:
    for place in (claim_section, report):  # plots are made of the same numbers; the slow test below compares them too
        monkeypatch.setattr(place, "overview" if place is report else "differences", lambda *drawn: None)
    plan = small_plan()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    carried(monkeypatch, plan, whole)
    assert carried(monkeypatch, plan, stopped, cells) == (cells >= 21)
    write_report(stopped, plan, BASE)
    assert carried(monkeypatch, plan, stopped)
    write_report(whole, plan, BASE)
    write_report(stopped, plan, BASE)
    assert files(stopped) == files(whole)


def test_a_part_of_a_round_decides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = small_plan()
    assert not carried(monkeypatch, plan, tmp_path, 15)
    assert set(verdicts(plan, tmp_path).values()) == {"not measured"}
    waiting = progress_of(plan, tmp_path).waiting
    assert waiting is not None
    assert waiting.title == "look 1 of 4 open claims"


@pytest.mark.parametrize(
    ("budget", "spent", "refused"),
    [
        (0, 0, {"up", "wide", "equal", "down"}),
        (4, 1, {"up", "wide", "equal", "down"}),
        (9, 9, {"up", "wide"}),
        (17, 17, {"wide"}),
        (20, 17, {"wide"}),
        (21, 21, set()),
    ],
)
def test_the_budget_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, budget: int, spent: int, refused: set[str]
) -> None:
    plan = small_plan(budget)
    assert carried(monkeypatch, plan, tmp_path)
    progress = progress_of(plan, tmp_path)
    assert progress.refused == refused
    recipes = {one.recipes[0].key() for one in all_cells(plan).values() if Found(tmp_path, BASE)(one) is not None}
    assert len(recipes) == len(progress.spent) == spent <= budget


def test_a_training_that_two_claims_share_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = replace(claim("up", UP), name="again")
    plan = Plan((), lambda choices: (claim("up", UP), both), lambda choices: (), None, 4)
    assert carried(monkeypatch, plan, tmp_path)
    assert verdicts(plan, tmp_path) == {"up": "agrees", "again": "agrees"}
    assert len(progress_of(plan, tmp_path).spent) == 4


def confused(claims_of: Any = None) -> Plan:
    """A plan whose judge takes black cats for poodles."""
    check = replace(cell("check", 0.0), experiment="s", recipes=())
    numbers = {
        "subjects": ["black cat", "poodle", "pagoda"],
        "whole": [[3, 2, 0], [0, 5, 0], [0, 0, 5]],
        "half": [[5, 0, 0], [0, 5, 0], [0, 0, 5]],
        "class": {"black cat": 1.0, "poodle": 0.8, "pagoda": 1.0},
    }
    from reproduce.paper.cell import Measured

    check = replace(check, measure=lambda lab, sight: Measured(numbers), shown=False)
    cats, towers = ("black cat", "poodle"), ("black cat", "pagoda")
    claims = (
        replace(claim("halves", UP, groups=(cats, towers)), detector="half"),
        replace(claim("wholes", UP, groups=(cats, towers)), detector="whole"),
        replace(claim("only", UP, groups=(cats,)), detector="whole"),
        replace(claim("classes", UP, groups=(("poodle",), ("pagoda",), ("black cat",))), detector="class"),
    )
    return Plan((), lambda choices: claims, lambda choices: (), check, 100)


def test_subjects_that_the_judge_cannot_tell_apart_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = confused()
    carried(monkeypatch, plan, tmp_path)
    assert verdicts(plan, tmp_path) == {
        "halves": "agrees", "wholes": "agrees", "only": "left out", "classes": "agrees",
    }  # fmt: skip
    progress = progress_of(plan, tmp_path)
    assert progress.dropped == {
        "wholes": ["black cat and poodle"], "only": ["black cat and poodle"], "classes": ["poodle"],
    }  # fmt: skip
    text = write_report(tmp_path, plan, BASE).read_text("utf-8")
    assert "only: not judged by black cat and poodle, which [the judge](pages/s.md) cannot tell apart." in text
    assert "1 left out" in text


def test_cells_that_decide_nothing_come_last_and_have_their_part_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = Plan((), lambda choices: (claim("equal", NEAR),), small_beside, None, 5)
    assert not carried(monkeypatch, plan, tmp_path / "cut", 4)
    assert Found(tmp_path / "cut", BASE)(small_beside(None)[0]) is None  # type: ignore[arg-type]
    assert verdicts(plan, tmp_path / "cut") == {"equal": "differs"}
    assert carried(monkeypatch, replace(plan, budget=4), tmp_path / "short")
    assert Found(tmp_path / "short", BASE)(small_beside(None)[0]) is not None  # type: ignore[arg-type]
    assert verdicts(plan, tmp_path / "short") == {"equal": "not measured"}


def test_results_of_trainings_are_forgotten_when_no_cell_needs_them(tmp_path: Path) -> None:
    done, open_, find = cell("done", 0.1), cell("open", 0.2), Found(tmp_path, BASE)
    both = replace(cell("both", 0.3), recipes=(*done.recipes, *open_.recipes, *cell("alone", 0.4).recipes))
    done.run(None, None, tmp_path, BASE)  # type: ignore[arg-type]
    work = tmp_path / "work"
    for one in (*both.recipes, cell("elsewhere", 0.5).recipes[0]):
        (work / one.key() / "steps").mkdir(parents=True)
    shared, own, alone = (work / recipe.key() / "steps" for recipe in both.recipes)
    forget([done, open_, both], find, work)
    assert shared.exists()  # `both` is not measured yet
    both.run(None, None, tmp_path, BASE)  # type: ignore[arg-type]
    forget([done, open_, both], find, work)
    assert [shared.exists(), own.exists(), alone.exists()] == [False, True, False]
    assert (work / cell("elsewhere", 0.5).recipes[0].key() / "steps").exists()


SCRIPT = """
import multiprocessing, sys
from pathlib import Path
from types import SimpleNamespace
from support.cells import small_plan
from reproduce.paper.carry_out import carry_out
from reproduce.paper.report import write_report
from svdiff_train.batch import process_pool
# Processes that have imported everything already: three rounds of two would import it for longer than they measure.
fork = multiprocessing.get_context("fork")
process_pool.multiprocessing = SimpleNamespace(get_context=lambda _: fork)
out = Path(sys.argv[1])
carry_out(small_plan(), out / "work", out, "0" * 16, 2, None, print)
write_report(out, small_plan(), "0" * 16)
"""


def started(out: Path) -> Running:
    return start(SCRIPT, out, CELL_SECONDS="0.3", warn=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that is not killed."""
    out = tmp_path_factory.mktemp("whole")
    assert started(out).wait(200).code == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 9, 17])
def test_a_run_that_is_killed_and_goes_on_gives_the_same_report(tmp_path: Path, whole: Path, cells: int) -> None:
    killed = tmp_path / "killed"
    process = started(killed)
    while sum(1 for _ in (killed / "cells").rglob("*.json")) < cells:
        assert not process.ended()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "paper.md").exists()
    assert started(killed).wait(200).code == 0
    assert files(killed) == files(whole)
