"""First lines of docstrings in the rooms of numerics say what is done, or name what is there."""

from __future__ import annotations

import ast
import re

import pytest
from support.sources import ROOT

ROOMS = ("runtime", "svd", "conversion")
RIDDLE = re.compile(r"(What|Which|Where|When|Whether|How|Why|Who|Whom|It|They|This|That)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


@pytest.mark.parametrize("room", ROOMS)
def test_no_first_line_begins_with_a_pronoun_or_a_question(room: str) -> None:
    riddles = [
        (path.name, line)
        for path in sorted((ROOT / "svdiff_delta" / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, DOCUMENTED) and (line := (ast.get_docstring(node) or "").partition("\n")[0])
        if RIDDLE.match(line)
    ]
    assert riddles == []
