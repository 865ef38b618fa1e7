"""A plugin for pytest: half of the cases of each test that has several; `HALF` in the environment, 0 or 1, says which.

Cases are taken by the parity of their number's bits (Thue and Morse): of cases that are pairs of settings, each half
has every value of either.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other half; a test without cases stays."""
    half, seen = int(os.environ["HALF"]), Counter[tuple[Path, str]]()
    kept, others = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        name, _, case = item.name.partition("[")
        number = seen[item.path, name]
        seen[item.path, name] += 1
        (kept if not case or number.bit_count() % 2 == half else others).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=others)
