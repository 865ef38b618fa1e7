"""Parts of models are told by the patterns and rules that the specification lays down for all implementations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.sd15 import LAYOUT
from support.second import FAMILIES

from svdiff_delta.selectors import structure
from svdiff_delta.selectors.structure import part_of
from svdiff_delta.selectors.subsets import COMPONENTS

TABLE = json.loads((Path(__file__).parents[2] / "spec" / "v1" / "modules.json").read_text("utf-8"))


def test_modules_are_told_by_the_patterns_of_the_code() -> None:
    assert TABLE["components"] == COMPONENTS
    ours = {name.lower(): value for name, value in vars(structure).items() if isinstance(value, re.Pattern)}
    assert {name: row["pattern"] for name, row in TABLE["patterns"].items()} == {
        name: pattern.pattern for name, pattern in ours.items()
    }
    assert {name: row["ignore_case"] for name, row in TABLE["patterns"].items()} == {
        name: bool(pattern.flags & re.IGNORECASE) for name, pattern in ours.items()
    }


def told(row: dict[str, Any], modules: list[str], name: str) -> bool:
    """Match a pattern of the table as its members say."""
    pattern = re.compile(row["pattern"], re.ASCII | (re.IGNORECASE if row["ignore_case"] else 0))
    if row["matches"] == "name":
        return pattern.search(name) is not None
    return any(pattern.fullmatch(module) for module in modules if len(module) <= 255)


@pytest.mark.parametrize("name", [*FAMILIES, *list(LAYOUT)[::9]])
def test_parts_are_the_rules_of_the_table(name: str) -> None:
    rows = TABLE["patterns"]
    modules = name.split(".")[1:-1]
    number = next((place for place, module in enumerate(modules) if module.isdigit()), len(modules))
    inner = modules[number + 1 :]
    attn = told(rows["attention"], modules, name) or told(rows["projection"], modules, name)
    forward = told(rows["feed_forward"], inner, name) or told(rows["output"], [], name)
    block = re.search(rows["block"]["pattern"], name)
    assert part_of(name) == (
        attn,
        attn and (told(rows["cross"], modules, name) or told(rows["added"], modules, name)),
        attn and told(rows["keys_and_values"], modules, name),
        told(rows["fused"], modules, name) if attn else forward and not any("norm" in module for module in inner),
        int(block[1]) if block and len(block[1]) <= 9 else None,
    )
