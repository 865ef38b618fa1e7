"""First lines of docstrings say what is done, or name what is there: a newcomer finds a module by them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from support.sources import ROOT

RIDDLE = re.compile(r"(What|Which|Where|When|Whether|How|Why|Who|Whom|It|They|This|That)\b")


def first_lines(folder: str, *kinds: type[ast.AST]) -> Iterator[tuple[str, str]]:
    """Return the first lines of docstrings in a folder, with the files they stand in."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                yield path.name, (ast.get_docstring(node) or "").partition("\n")[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["svdiff_delta", "svdiff_train", "svdiff_serve"])
def test_no_module_begins_with_a_question_or_a_pronoun(package: str) -> None:
    assert [line for line in first_lines(package, ast.Module) if RIDDLE.match(line[1])] == []


@pytest.mark.parametrize("room", ["runtime", "svd", "conversion"])
def test_neither_does_anything_in_the_rooms_of_numerics(room: str) -> None:
    lines = first_lines(f"svdiff_delta/{room}", ast.ClassDef, ast.FunctionDef)
    assert [line for line in lines if RIDDLE.match(line[1])] == []
