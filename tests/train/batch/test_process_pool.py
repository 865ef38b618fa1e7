"""Processes that share out tasks: several at once, each task once, and a death is a task's own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.tasks import die, leave_half, meet, pid

from svdiff_train.batch.process_pool import run_tasks


def ignore(index: int) -> None:
    pass


@pytest.mark.slow
def test_two_processes_work_at_the_same_time(tmp_path: Path) -> None:
    tasks = [(tmp_path, "a", 2), (tmp_path, "b", 2)]
    pids = {result for _, result in run_tasks(meet, tasks, 2, ignore)}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.slow
def test_each_task_is_done_once_by_no_more_processes_than_asked_for() -> None:
    found = dict(run_tasks(pid, [(10 * number,) for number in range(7)], 2, ignore))
    results = [found[index] for index in range(7)]
    assert [result[0] for result in results if result] == [0, 10, 20, 30, 40, 50, 60]
    assert len({result[1] for result in results if result}) <= 2


@pytest.mark.slow
def test_each_task_is_told_of_before_it_begins() -> None:
    begun: list[int] = []
    for index, _ in run_tasks(pid, [(number,) for number in range(4)], 2, begun.append):
        assert index in begun
    assert begun == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_process_that_dies_takes_only_its_own_task_with_it() -> None:
    found = dict(run_tasks(die, [(number,) for number in range(5)], 2, ignore))
    assert found == {0: 0, 1: None, 2: 2, 3: 3, 4: 4}


@pytest.mark.slow
def test_more_processes_than_tasks_are_no_trouble() -> None:
    assert dict(run_tasks(die, [(0,)], 3, ignore)) == {0: 0}


def test_processes_that_are_told_to_stop_clean_up(tmp_path: Path) -> None:
    path = tmp_path / "half"
    results = run_tasks(leave_half, [(None,), (path,)], 2, ignore)
    assert next(results) == (0, None)
    for _ in range(600):
        if path.exists():
            break
        time.sleep(0.05)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 15
    assert not path.exists()
