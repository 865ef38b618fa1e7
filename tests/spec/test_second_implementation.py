"""The second implementation of the format, `js/`, makes the same bytes as this library.

It was written from the specification alone. `make js` builds it, which `make test` does where Node is.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.deltas import random_delta
from support.second import write_files, write_operations

from svdiff_delta import merge
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads

JS = Path(__file__).parents[2] / "js"

pytestmark = pytest.mark.node


def run(folder: Path) -> Any:
    """Let the second implementation do what lies in a folder; return how much it did, and what differs."""
    command = ["node", "test/cases.mjs", str(folder)]
    done = subprocess.run(command, cwd=JS, check=True, text=True, capture_output=True)
    return json.loads(done.stdout)


def test_500_random_operations_give_the_same_bytes_or_the_same_refusal(tmp_path: Path) -> None:
    cases = write_operations(tmp_path, "second", 500)
    assert sum("error" not in case for case in cases) >= 350  # else there would be little to compare
    assert run(tmp_path) == {"compared": 500, "differing": []}


def test_500_broken_files_are_refused_alike_and_the_others_written_alike(tmp_path: Path) -> None:
    refusals = write_files(tmp_path, 28, 500)
    assert 20 <= refusals.count("") <= 100
    assert run(tmp_path) == {"compared": 500, "differing": []}


def test_slerp_gives_the_same_within_a_rounding(tmp_path: Path) -> None:
    """Sines may differ in their last bit, so that the nearest F32 number may be the next one."""
    pairs = [(random_delta(number), random_delta(number + 100)) for number in range(20)]
    cases = []
    for number, pair in enumerate(pairs):
        for place, delta in enumerate(pair):
            (tmp_path / f"{number}-{place}").write_bytes(dumps(delta))
        arguments = {"method": "slerp", "alpha": number / 19}
        cases.append({"number": number, "operation": "merge", "inputs": 2, "arguments": arguments, "title": None})
        (tmp_path / f"{number}-result").write_bytes(dumps(merge(pair, **arguments)))
    (tmp_path / "cases.json").write_text(json.dumps(cases), "utf-8")
    assert run(tmp_path)["compared"] == len(pairs)
    for number in range(len(pairs)):
        ours, theirs = (loads((tmp_path / f"{number}-{end}").read_bytes()) for end in ("result", "made"))
        assert ours.metadata == theirs.metadata
        assert_within_a_rounding(ours, theirs)


def assert_within_a_rounding(ours: Delta, theirs: Delta) -> None:
    for name in ours:
        np.testing.assert_array_max_ulp(ours[name], theirs[name], maxulp=1)
