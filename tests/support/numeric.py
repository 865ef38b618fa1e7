"""Which tests compare what torch has computed: found by reading them, so that no list of them goes out of date."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    return "torch" in _imported(path)


def reaches_torch(path: Path) -> bool:
    """Tell whether a file imports torch, or a module that computes with it."""
    return not _imported(path).isdisjoint(REACHING)


def _imported(path: Path) -> set[str]:
    """Return the modules that a file imports, and their packages."""
    imported = set[str]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                imported |= {name.name.partition(".")[0] for name in names}
            case ast.ImportFrom(module=str(module)):
                imported |= {module, module.partition(".")[0]}
    return imported


def numeric_tests(path: Path) -> list[str]:
    """Return the names of a file's tests that compare numbers, themselves or in a function of their file."""
    tree = ast.parse(path.read_text("utf-8"))
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
