"""What the sources say: their strings, but for docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Text(NamedTuple):
    """A string of a source file; an f-string is one, with `…` for each value in it."""

    file: str
    line: int
    text: str


def texts(*packages: str) -> Iterator[Text]:
    """Return all strings of packages that are no docstrings."""
    return chain.from_iterable(map(_texts, packages))


@cache
def _texts(package: str) -> tuple[Text, ...]:
    return tuple(
        Text(path.relative_to(ROOT).as_posix(), line, text)
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in texts_of(path.read_text())
    )


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Return the strings of a source that are no docstrings, with their lines."""
    tree = ast.parse(source)
    passed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    passed |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
            yield node.lineno, node.value
