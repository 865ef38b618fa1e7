"""Which tests compare what torch has computed: found by reading them, so that no list of them goes out of date."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent.parent
COMPARING: Final = frozenset(
    {"abs", "allclose", "approx", "array_equal", "assert_allclose", "assert_array_equal", "assert_close", "difference"}
    | {"distance", "equal", "greatest_distance", "isclose", "norm", "relative", "tobytes"}
)
"""Functions by which numbers, tensors and pictures are compared. Files of two equal runs are equal on any processor."""

REACHING: Final = frozenset(
    {"torch", "diffusers", "svdiff_train"}
    | {"support.checkpoints", "support.live", "support.models", "support.pipelines"}
)
"""Modules that bring torch with them."""


def files_of_tests() -> list[Path]:
    """Return all files of tests, sorted."""
    return sorted(TESTS.rglob("test_*.py"))


def imports_torch(path: Path) -> bool:
    """Tell whether a file imports torch itself."""
    return "torch" in _found(path)[0]


def reaches_torch(path: Path) -> bool:
    """Tell whether a file imports torch, or a module that computes with it."""
    return not _found(path)[0].isdisjoint(REACHING)


def numeric_tests(path: Path) -> tuple[str, ...]:
    """Return the names of a file's tests that compare numbers, themselves or in a function of their file."""
    return _found(path)[1]


@cache
def _found(path: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the modules that a file imports and their packages, and its tests that compare numbers."""
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(_imported(tree)), tuple(_numeric_tests(tree))


def _imported(tree: ast.Module) -> set[str]:
    imported = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported |= {name.name.partition(".")[0] for name in names}
            case ast.ImportFrom(module=str(module)):
                imported |= {module, module.partition(".")[0]}
    return imported


def _numeric_tests(tree: ast.Module) -> list[str]:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    comparing = {name for name, node in functions.items() if _compares(node)}
    while more := {name for name, node in functions.items() if name not in comparing and comparing & {*_names(node)}}:
        comparing |= more
    return [name for name in functions if name.startswith("test_") and name in comparing and not _slow(functions[name])]


def _names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name


def _compares(node: ast.AST) -> bool:
    """Tell whether a function calls one of `COMPARING`, or compares something with a number with a decimal point."""
    return not COMPARING.isdisjoint(_names(node)) or any(
        isinstance(part, ast.Constant) and isinstance(part.value, float)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Compare)
        for part in ast.walk(inner)
    )


def _slow(node: ast.FunctionDef) -> bool:
    return any("slow" in ast.unparse(decorator) for decorator in node.decorator_list)
