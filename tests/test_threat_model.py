"""The threat model names a test for each promise, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
POLICY = (ROOT / "SECURITY.md").read_text("utf-8")
PROMISES = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_each_test_that_is_named_exists(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)


def test_there_are_promises_and_each_kind_of_fault_has_one() -> None:
    assert {int(row) for row, *_ in PROMISES} == set(range(1, 22))
    assert len(NAMED) == PAGE.count("::test_") > 30


def test_the_two_pages_lead_to_each_other() -> None:
    assert "(docs/threat-model.md)" in POLICY
    assert "(../SECURITY.md)" in PAGE


def test_every_promise_has_a_test() -> None:
    assert [promise for _, promise, tests in PROMISES if "::test_" not in tests] == []
