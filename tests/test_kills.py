"""Commands that are killed and told to end, a few times each (`python tests/kills.py` does it by the hundred)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kills
import pytest

SCRIPT = Path(kills.__file__)


def end(only: str, many: int, told: int, seed: int = 0) -> str:
    """Run the script in a process of its own, which forks: this one has threads."""
    command = [
        sys.executable,
        str(SCRIPT),
        "--kills",
        str(many),
        "--terms",
        str(told),
        "--seed",
        str(seed),
        "--only",
        only,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850, env=os.environ)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_bake_that_is_ended_leaves_old_or_new_and_nothing_else() -> None:
    assert end("bake", 4, 2).startswith("old or new every time, nothing left")


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.COMMANDS)
def test_every_command_that_writes_a_folder_may_be_ended_at_any_moment(name: str) -> None:
    many = int(os.environ.get("KILLS", "40"))
    share = kills.COMMANDS[name].share
    told = end(name, max(2, int(many * share * 0.75)), max(1, int(many * share * 0.25)), seed=1)
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
