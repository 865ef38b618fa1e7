"""Merge recipes: YAML files that say what to merge and how, and may take other recipes as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from svdiff_delta._yaml import read_yaml
from svdiff_delta.codec import STORED_DTYPES, StoredDtype, is_stored_dtype
from svdiff_delta.delta import Delta
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.file import load
from svdiff_delta.repository import Reference, locate
from svdiff_delta.weights import Weight, as_factor

from .apply import merge

KEYS: Final = {"method", "density", "alpha", "seed", "dtype", "sample_size", "title", "inputs"}
INPUT_KEYS: Final = {"delta", "recipe", "weight", "where"}


@dataclass(frozen=True)
class Input:
    """One input of a recipe: a delta or another recipe, with its weight, or None where it has none.

    A delta that is not at its path may be one of the Hub: `text` is how the recipe names it.
    """

    path: Path
    is_recipe: bool
    weight: Weight | None
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class Recipe:
    """What to merge and how.

    Attributes:
        inputs: in order.
        options: what `merge` takes by name: method, density, alpha, seed, dtype, sample_size.
        title: of the result.
    """

    inputs: tuple[Input, ...]
    options: Mapping[str, Any]
    title: str | None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; paths in it are relative to its own folder.

    Raises:
        InputError: it cannot be read, is not YAML, or has unknown keys or wrong values; the message names them.
    """
    fields = read_yaml(path)
    try:
        return _recipe(fields, path.parent)
    except DeltaError as error:
        raise type(error)(f"{path}: {error.message}", fix=error.fix) from None


def _recipe(fields: Any, folder: Path) -> Recipe:
    fields = _mapping(fields, "a recipe", KEYS)
    inputs = fields.pop("inputs", None)
    if not isinstance(inputs, list) or not inputs:
        raise InputError("inputs: must be a list of deltas or recipes")
    title, dtype = fields.pop("title", None), fields.pop("dtype", "F32")
    if title is not None and not isinstance(title, str):
        raise InputError("title: must be a text")
    if not isinstance(fields.get("method", ""), str):
        raise InputError("method: must be a text")
    for key in ("density", "alpha"):
        if key in fields:
            fields[key] = _number(fields[key], key)
    for key in ("seed", "sample_size"):
        if type(fields.get(key, 0)) is not int:
            raise InputError(f"{key}: must be a whole number")
    options = {**fields, "dtype": _dtype(dtype)}
    return Recipe(tuple(_input(item, folder) for item in inputs), options, title)


def _dtype(name: Any) -> StoredDtype:
    if not isinstance(name, str) or not is_stored_dtype(name.upper()):
        raise InputError(f"dtype: {name!r} is unknown", fix=f"known are {', '.join(STORED_DTYPES)}")
    upper = name.upper()
    return upper if is_stored_dtype(upper) else "F32"


def _input(fields: Any, folder: Path) -> Input:
    fields = _mapping(fields, "an input", INPUT_KEYS)
    if ("delta" in fields) == ("recipe" in fields):
        raise InputError("an input has either a delta or a recipe", fix="give the path of one of them")
    kind = "recipe" if "recipe" in fields else "delta"
    if not isinstance(fields[kind], str):
        raise InputError(f"{kind}: must be a path")
    weight = None
    if "weight" in fields or "where" in fields:
        where = fields.get("where", {})
        if not isinstance(where, dict):
            raise InputError("where: must map selectors to weights")
        factors = {str(selector): _number(factor, f"where {selector}") for selector, factor in where.items()}
        weight = Weight(_number(fields.get("weight", 1.0), "weight"), factors)
    return Input(folder / fields[kind], kind == "recipe", weight, fields[kind])


def _mapping(fields: Any, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise InputError(f"{what} must be a mapping", fix=f"its keys are {', '.join(sorted(known))}")
    if unknown := sorted(str(key) for key in fields if key not in known):
        raise InputError(f"{what} has the unknown key {unknown[0]!r}", fix=f"known are {', '.join(sorted(known))}")
    return dict(fields)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{key}: must be a number, is {value!r}")
    return as_factor(value, key)


def run_recipe(path: Path, _above: tuple[Path, ...] = ()) -> Delta:
    """Merge as a recipe says; recipes among its inputs are run first.

    Raises:
        InputError: as `read_recipe`, or a recipe takes itself as an input.
        DeltaError: as `load` and `merge`.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise InputError(f"{path}: is not a path that can be read ({error})") from None
    if place in _above:
        raise InputError(f"{path}: the recipe takes itself as an input", fix="remove the cycle")
    recipe = read_recipe(path)
    deltas = [
        run_recipe(item.path, (*_above, place)) if item.is_recipe else _load(item, path.parent)
        for item in recipe.inputs
    ]
    weights = None
    if any(item.weight is not None for item in recipe.inputs):
        weights = [item.weight or Weight() for item in recipe.inputs]
    try:
        merged = merge(deltas, weights=weights, **recipe.options)
    except DeltaError as error:
        raise type(error)(f"{path}: {error.message}", fix=error.fix) from None
    return merged if recipe.title is None else merged.with_title(recipe.title)


def _load(item: Input, folder: Path) -> Delta:
    on_hub = isinstance(locate(item.text, folder), Reference)
    return load(item.text if on_hub else item.path)
