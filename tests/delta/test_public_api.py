"""The package root is the API: its names are pinned, and each is what its name says."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from support.commands import python

import svdiff_delta

NAMES = [
    "Baked",
    "Base",
    "Basis",
    "Conversion",
    "Delta",
    "DeltaError",
    "Handle",
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
    "add": "(*deltas: 'Delta', weights: 'Sequence[float | Mapping[str, float] | Weight] | None' = None,"
    " dtype: 'StoredDtype' = 'F32', sample_size: 'int | None' = None) -> 'Delta'",
    "interpolate": "(a: 'Delta', b: 'Delta', alpha: 'float', *, dtype: 'StoredDtype' = 'F32') -> 'Delta'",
    "load": "(path: 'str | PathLike[str]') -> 'Delta'",
    "merge": "(deltas: 'Sequence[Delta]', *, method: 'str' = 'linear',"
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
    assert inspect.getdoc(getattr(svdiff_delta, name))


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


@pytest.mark.parametrize(
    "first",
    [
        "import svdiff_delta.baking.bake as b, svdiff_delta.svd.energy as e; assert b.Baked and e.Energy",
        "from svdiff_delta.ops.select import match",
        "from svdiff_delta.conversion import convert, energy_limits as e; import svdiff_delta.baking.bake; e.LEAST",
        "import svdiff_cli.main",
    ],
)
def test_functions_are_functions_even_after_the_modules_were_imported(first: str) -> None:
    check = "from svdiff_delta import bake, select; assert type(bake) is type(select) is type(lambda: 0)"
    outcome = python(f"{first}\n{check}")
    assert outcome.code == 0, outcome.err


def test_the_version_is_that_of_the_distribution() -> None:
    assert svdiff_delta.__version__ == version("svdiff-delta")
    assert re.fullmatch(r"\d+\.\d+\.\d+", svdiff_delta.__version__)
