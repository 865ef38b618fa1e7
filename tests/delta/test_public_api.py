"""The package root is the API: its names are pinned, and each is what its name says."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
from support.commands import python

import svdiff_delta
from svdiff_delta import Delta
from svdiff_delta.format.dtypes import STORED_DTYPES, Stored
from svdiff_delta.format.entry import Entry

NAMES = [
    "AttachError",
    "Baked",
    "Base",
    "BaseError",
    "BaseInfo",
    "BaseMismatchError",
    "Basis",
    "BasisCache",
    "CacheError",
    "Calibration",
    "Conversion",
    "Delta",
    "DeltaError",
    "DeltaWarning",
    "Energy",
    "FormatError",
    "Handle",
    "HeaderError",
    "HubError",
    "InputError",
    "Kept",
    "Lineage",
    "Loss",
    "Metadata",
    "MetadataError",
    "MissingExtraError",
    "OutputEnergy",
    "OutputError",
    "Parameter",
    "Pushed",
    "Record",
    "SelectionError",
    "SlowError",
    "Source",
    "StoredDtype",
    "TensorError",
    "TrainError",
    "VersionError",
    "Weight",
    "WeightedDelta",
    "__version__",
    "add",
    "attach",
    "bake",
    "build_basis",
    "convert",
    "handle_of",
    "interpolate",
    "load",
    "merge",
    "open_base",
    "pull",
    "push",
    "quantize",
    "rebase",
    "save",
    "scale",
    "select",
    "style_mix",
    "truncate",
    "zero_delta",
]
SIGNATURES = {
    "add": "(*deltas: 'WeightedDelta', weights: 'Sequence[float | Mapping[str, float] | Weight] | None' = None,"
    " dtype: 'StoredDtype' = 'F32', sample_size: 'int | None' = None) -> 'Delta'",
    "interpolate": "(a: 'Delta', b: 'Delta', alpha: 'float', *, dtype: 'StoredDtype' = 'F32') -> 'Delta'",
    "load": "(path: 'str | PathLike[str]') -> 'Delta'",
    "merge": "(deltas: 'Sequence[WeightedDelta]', *, method: 'str' = 'linear',"
    " weights: 'Sequence[float | Mapping[str, float] | Weight] | None' = None, density: 'float | None' = None,"
    " alpha: 'float | None' = None, seed: 'int | None' = None, dtype: 'StoredDtype' = 'F32',"
    " sample_size: 'int | None' = None) -> 'Delta'",
    "pull": "(repository: 'str', output: 'str | PathLike[str] | None' = None, *, overwrite: 'bool' = False) -> 'Delta'",
    "push": "(delta: 'Delta | str | PathLike[str]', repository: 'str', *, instance_prompt: 'str | None' = None,"
    " license: 'str | None' = None, base_model: 'str | None' = None,"
    " samples: 'Sequence[tuple[str | PathLike[str], str]]' = (), lora: 'str | PathLike[str] | None' = None,"
    " private: 'bool' = False, revision: 'str | None' = None, create_pr: 'bool' = False,"
    " message: 'str' = 'Push a delta with svdiff', overwrite: 'bool' = False, dry_run: 'bool' = False) -> 'Pushed'",
    "quantize": "(delta: 'Delta', dtype: 'StoredDtype' = 'I8', *, max_error: 'float' = 0.02) -> 'Delta'",
    "save": "(delta: 'Delta', path: 'str | PathLike[str]', *, overwrite: 'bool' = False,"
    " dtype: 'StoredDtype | None' = None) -> 'None'",
    "scale": "(delta: 'Delta', factor: 'float', *, dtype: 'StoredDtype' = 'F32') -> 'Delta'",
    "style_mix": "(geometry: 'Delta', appearance: 'Delta', *, layers: 'str | Sequence[str]' = '(16,down,1)-(8,down,0)',"
    " sample_size: 'int | None' = None, dtype: 'StoredDtype' = 'F32') -> 'Delta'",
    "truncate": "(delta: 'Delta', *, rank: 'int | None' = None, energy: 'float | None' = None) -> 'Delta'",
    "select": "(delta: 'Delta', *selectors: 'str', sample_size: 'int | None' = None) -> 'Delta'",
}


def test_the_exported_names_are_these() -> None:
    assert svdiff_delta.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(svdiff_delta, name)
    assert inspect.getdoc(value) or name == "StoredDtype"  # an alias of `Literal`, which has no docstring


def test_the_stored_dtypes_are_all_that_files_hold() -> None:
    assert get_args(svdiff_delta.StoredDtype) == STORED_DTYPES


INTERNAL = {
    "Component": "Base.__init__ Base.locate",  # a base is made by `open_base`, and looked into by the library
    "Entry": "Base.locate",
    "Layout": "BaseInfo.__init__",  # which layers addresses name: `open_base` reads it from the model
    "Moments": "Calibration.__init__",  # a calibration is made by the trainer, which runs the model
    "Origin": "Delta.from_stored",  # a delta as a file holds it, which `load` makes
    "Probe": "Calibration.__init__",
    "Shift": "Handle.trained",  # the layers themselves, for the trainer
    "Stored": "Delta.from_stored",
}
"""Classes that only the library and the trainer hold, and the one place each stands in that others may call."""


def test_every_class_in_a_public_signature_is_exported() -> None:
    hidden: dict[str, set[str]] = {}
    for place, function in public_functions():
        for found in classes_in(function):
            if not is_exported(found):
                hidden.setdefault(found.__name__, set()).add(place)
    assert {name: " ".join(sorted(places)) for name, places in sorted(hidden.items())} == INTERNAL


BEHIND = ("fget", "func", "__func__")
"""Where properties, cached properties, and methods of classes keep their functions."""


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Return what has a public signature: functions, and constructors, methods and properties of classes."""
    for name in NAMES:
        value = getattr(svdiff_delta, name)
        if inspect.isfunction(value):
            yield name, value
        for key, member in vars(value).items() if isinstance(value, type) else ():
            function = next((getattr(member, way) for way in BEHIND if hasattr(member, way)), member)
            if inspect.isfunction(function) and (key == "__init__" or not key.startswith("_")):
                yield f"{name}.{key}", function


def classes_in(function: Callable[..., Any]) -> Iterator[type]:
    """Return the classes of the library in a function's annotations."""
    function = inspect.unwrap(function)
    for hint in get_type_hints(function, globalns=names_of(sys.modules[function.__module__])).values():
        yield from (found for found in parts_of(hint) if found.__module__.partition(".")[0] == "svdiff_delta")


def parts_of(hint: Any) -> Iterator[type]:
    """Return the classes that an annotation is made of."""
    if isinstance(hint, list):  # the arguments of a Callable
        yield from (found for item in hint for found in parts_of(item))
    elif isinstance(hint, type) and not get_args(hint):
        yield hint
    yield from (found for item in get_args(hint) for found in parts_of(item))


def names_of(module: ModuleType) -> dict[str, Any]:
    """Return what annotations of a module may name: what is in it, and what it imports for type checkers alone."""
    names = dict(vars(module))
    checked = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If)]
    for node in (statement for block in checked for statement in block.body if isinstance(statement, ast.ImportFrom)):
        source = importlib.import_module("." * node.level + (node.module or ""), module.__package__)
        names |= {alias.asname or alias.name: getattr(source, alias.name) for alias in node.names}
    return names


def is_exported(found: type) -> bool:
    return getattr(svdiff_delta, found.__name__, None) is found if found.__name__ in NAMES else False


def test_a_class_that_is_not_exported_is_found_wherever_it_stands() -> None:
    def nested(a: Mapping[str, Callable[[Sequence[Stored]], None]] | None) -> tuple[Delta, Entry]: ...

    assert {*classes_in(nested)} == {Stored, Delta, Entry}
    assert is_exported(Delta)
    assert not is_exported(Entry)


def test_every_error_of_the_library_is_exported() -> None:
    for path in sorted(Path(svdiff_delta.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Error") for base in node.bases):
                assert node.name in {*NAMES, "OlderEntry"}, path  # an old entry of a cache is computed again


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_function_of_the_light_half_is_called_like_this(name: str) -> None:
    assert str(inspect.signature(getattr(svdiff_delta, name))) == SIGNATURES[name]


def test_what_type_checkers_see_is_what_there_is_at_run_time() -> None:
    tree = ast.parse(Path(svdiff_delta.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: svdiff_delta.__dict__["_HOME"][name] for name in NAMES if name != "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'svdiff_delta' has no attribute 'merge_all'$"):
        svdiff_delta.merge_all  # noqa: B018


def test_no_module_beside_the_public_names_is_called_like_one() -> None:
    folder = Path(svdiff_delta.__file__).parent
    assert not {path.stem for path in folder.iterdir()} & set(NAMES)


FIRST = (
    "import svdiff_delta.baking.bake as b, svdiff_delta.svd.energy as e; assert b.Baked and e.Energy",
    "from svdiff_delta.ops.select import match",
    "from svdiff_delta.conversion import convert, energy_limits as e; import svdiff_delta.baking.bake; e.LEAST",
    "import svdiff_cli.main",
)


def test_functions_are_functions_even_after_the_modules_were_imported() -> None:
    """Each in a fork of one process, as importing torch takes seconds and has no part in it."""
    code = """import os, torch
for first in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(first)
        from svdiff_delta import bake, select
        assert type(bake) is type(select) is type(lambda: 0), first
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, first
print("all")
"""
    outcome = python(f"import sys\n{code}", *FIRST)
    assert (outcome.code, outcome.out) == (0, "all\n"), outcome.err


def test_the_version_is_that_of_the_distribution() -> None:
    assert svdiff_delta.__version__ == version("svdiff-delta")
    assert re.fullmatch(r"\d+\.\d+\.\d+", svdiff_delta.__version__)
