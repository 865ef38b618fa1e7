"""Commands that are killed and told to end, a few times each (`python tests/kills.py` does it by the hundred)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import kills
import pytest

SCRIPT = Path(kills.__file__)


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    """The script in a process of its own, which forks: this one has threads. Imports take longer than most commands."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "--asked"], stdin=PIPE, stdout=PIPE, stderr=errors, text=True, bufsize=1
        ) as process,
    ):
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0, errors.seek(0) or errors.read()[-2_000:]


def end(killer: subprocess.Popen[str], name: str, kills: int, terms: int, seed: int = 0) -> str:
    """Let a command be ended that often; return how it went."""
    assert killer.stdin is not None
    assert killer.stdout is not None
    killer.stdin.write(f"{kills} {terms} {seed} {name}\n")
    return killer.stdout.readline()


@pytest.mark.slow
def test_a_bake_that_is_ended_leaves_old_or_new_and_nothing_else(killer: subprocess.Popen[str]) -> None:
    assert end(killer, "bake", 4, 2).startswith("old or new every time, nothing left")


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.COMMANDS)
def test_every_command_that_writes_a_folder_may_be_ended_at_any_moment(
    killer: subprocess.Popen[str], name: str
) -> None:
    many = int(os.environ.get("KILLS", "40"))
    share = kills.COMMANDS[name].share
    told = end(killer, name, max(2, int(many * share * 0.75)), max(1, int(many * share * 0.25)), seed=1)
    assert told.startswith("old or new every time, nothing left")


def test_the_commands_that_write_folders_are_all_among_them() -> None:
    """Whoever uses `replace_folder` anew has to name the command here."""
    users = {
        str(path.relative_to(SCRIPT.parent.parent))
        for folder in ("svdiff_delta", "svdiff_train", "cli")
        for path in (SCRIPT.parent.parent / folder).rglob("*.py")
        if "replace_folder(" in path.read_text("utf-8")
    }
    assert users == {
        "svdiff_delta/_util/atomic.py",
        "svdiff_delta/baking/bake.py",
        "svdiff_delta/conversion/peft.py",
        "svdiff_delta/conversion/respell/api.py",
        "svdiff_train/methods/checkpoint.py",
        "svdiff_train/methods/lora.py",
        "svdiff_train/sampling/clip_out.py",
        "cli/svdiff_cli/demo.py",
        "cli/svdiff_cli/generate.py",
    }


def test_the_proof_would_notice_what_is_lost_or_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    one = kills.digest(tmp_path / "a")
    (tmp_path / "a" / "x").write_bytes(b"2")
    assert kills.digest(tmp_path / "a") != one
    (tmp_path / "a" / ".out.0.svdiff-tmp").mkdir()
    (tmp_path / "a" / "b.lock").touch()
    assert kills.leftovers(tmp_path) == ["a/.out.0.svdiff-tmp", "a/b.lock"]
