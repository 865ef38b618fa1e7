"""Names of this project that scripts hold as text: what they name is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("svdiff_delta", "svdiff_train", "svdiff_serve", "svdiff_cli", "tools", "reproduce")


def texts() -> Iterator[tuple[Path, str]]:
    """Every string of a script that is a program with an import in it."""
    for folder in ("benchmarks", "tests", "tools", "reproduce"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
                    yield path, node.value


def imports(text: str) -> Iterator[tuple[str, str]]:
    """Each `from module import name` of a program; what is no program has none."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            yield from ((node.module, alias.name) for alias in node.names)


def test_what_code_in_strings_imports_is_there() -> None:
    """A move of modules that forgets such code shows only when a benchmark runs."""
    asked = {(path, *each) for path, text in texts() for each in imports(text)}
    assert len(asked) > 20
    gone = [
        f"{path.relative_to(ROOT)}: {module} has no {name}"
        for path, module, name in sorted(asked)
        if not (hasattr(import_module(module), name) or find_spec(f"{module}.{name}"))
    ]
    assert gone == []


def patched() -> Iterator[tuple[Path, str, str]]:
    """Each function of a module of this project that a benchmark puts another in place of: the module, the name."""
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
        modules = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS
            for alias in node.names
        }
        for node in nodes:
            match node:
                case ast.Call(ast.Attribute(attr="object"), [ast.Name(id=module), ast.Constant(value=str(name)), *_]):
                    if module in modules:
                        yield path, modules[module], name


def test_what_benchmarks_put_others_in_place_of_is_there() -> None:
    asked = [*patched()]
    assert asked
    gone = [
        f"{path.relative_to(ROOT)}: {module} has no {name}"
        for path, module, name in asked
        if not hasattr(import_module(module), name)
    ]
    assert gone == []
