"""The second implementation of the format, `js/`, makes the same bytes as this library.

It was written from the specification alone. `make js` builds it, which `make test` does where Node is.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.second import draw_slice, write_files, write_operations

JS = Path(__file__).parents[2] / "js"

pytestmark = pytest.mark.node


def run(folder: Path) -> Any:
    """Let the second implementation do what lies in a folder; return how much it did, and what differs."""
    command = ["node", "test/cases.mjs", str(folder)]
    done = subprocess.run(command, cwd=JS, check=True, text=True, capture_output=True)
    return json.loads(done.stdout)


def test_500_random_operations_give_the_same_bytes_or_the_same_refusal(tmp_path: Path) -> None:
    cases = write_operations(tmp_path, "second", 500)
    assert sum("error" not in case for case in cases) >= 320  # else there would be little to compare
    assert run(tmp_path) == {"compared": 500, "differing": []}


def test_500_broken_files_are_refused_alike_and_the_others_written_alike(tmp_path: Path) -> None:
    refusals = write_files(tmp_path, 28, 500)
    assert 20 <= refusals.count("") <= 100
    assert run(tmp_path) == {"compared": 500, "differing": []}


def test_300_random_selectors_by_part_give_the_same_bytes_or_the_same_refusal(tmp_path: Path) -> None:
    cases = write_operations(tmp_path, "parts", 300, draw_slice)
    assert sum("error" not in case for case in cases) >= 120
    assert run(tmp_path) == {"compared": 300, "differing": []}
