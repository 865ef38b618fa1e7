"""Merge recipes: YAML files that say what to merge and how, and may take other recipes as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from svdiff_delta._text.printable import shown
from svdiff_delta._util.limits import INCLUSIONS, RECIPE, RECIPES
from svdiff_delta._util.reading import system_errors
from svdiff_delta._util.typed import build, given
from svdiff_delta._util.yaml import read_yaml
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import STORED_DTYPES, StoredDtype, is_stored_dtype
from svdiff_delta.hub_client.reference import Reference, locate
from svdiff_delta.io import load
from svdiff_delta.ops.weights import Weight

from .apply import merge


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


class _Input(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An input as a recipe says it."""

    NOUN: ClassVar[str] = "an input"

    delta: str | msgspec.UnsetType = msgspec.UNSET
    recipe: str | msgspec.UnsetType = msgspec.UNSET
    weight: float | msgspec.UnsetType = msgspec.UNSET
    where: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class _Recipe(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A recipe as its file says it."""

    NOUN: ClassVar[str] = "a recipe"

    alpha: float | msgspec.UnsetType = msgspec.UNSET
    density: float | msgspec.UnsetType = msgspec.UNSET
    dtype: str = "F32"
    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1)]
    method: str | msgspec.UnsetType = msgspec.UNSET
    sample_size: int | msgspec.UnsetType = msgspec.UNSET
    seed: int | msgspec.UnsetType = msgspec.UNSET
    title: str | None = None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; paths in it are relative to its own folder.

    Raises:
        InputError: it cannot be read, is not YAML, or has unknown keys or wrong values; the message names them.
    """
    fields = build(_Recipe, read_yaml(path, RECIPE), str(path))
    try:
        return _recipe(fields, path.parent)
    except DeltaError as error:
        raise type(error)(f"{path}: {error.message}", fix=error.fix) from None


def _recipe(fields: _Recipe, folder: Path) -> Recipe:
    options = {**given(fields), "dtype": _dtype(fields.dtype)}
    for key in ("inputs", "title"):
        options.pop(key)
    return Recipe(tuple(_input(item, folder) for item in fields.inputs), options, fields.title)


def _dtype(name: str) -> StoredDtype:
    upper = name.upper()
    if not is_stored_dtype(upper):
        raise InputError(f"dtype: {shown(name)} is unknown", fix=f"known are {', '.join(STORED_DTYPES)}")
    return upper


def _input(fields: _Input, folder: Path) -> Input:
    said = given(fields)
    if ("delta" in said) == ("recipe" in said):
        raise InputError("an input has either a delta or a recipe", fix="give the path of one of them")
    kind = "recipe" if "recipe" in said else "delta"
    weight = None
    if "weight" in said or "where" in said:
        weight = Weight(said.get("weight", 1.0), said.get("where", {}))
    return Input(folder / said[kind], kind == "recipe", weight, said[kind])


def run_recipe(path: Path) -> Delta:
    """Merge as a recipe says; recipes among its inputs are run first, each once.

    Raises:
        InputError: as `read_recipe`, or a recipe takes itself as an input, or takes in too many others.
        DeltaError: as `load` and `merge`.
    """
    return _Run().run(path, ())


class _Run:
    """One run of a recipe: what recipes within it gave, so that one that is taken in twice is run once."""

    def __init__(self) -> None:
        self.done: dict[Path, Delta] = {}
        self.begun = 0

    def run(self, path: Path, above: tuple[Path, ...]) -> Delta:
        """Merge as a recipe says, which those above it take in."""
        place = _place(path)
        if place in above:
            raise InputError(f"{path}: the recipe takes itself as an input", fix="remove the cycle")
        if place not in self.done:
            self._check_count(path, above)
            self.done[place] = self._merge(path, (*above, place))
        return self.done[place]

    def _check_count(self, path: Path, above: tuple[Path, ...]) -> None:
        self.begun += 1
        if len(above) >= INCLUSIONS:
            raise InputError(f"{path}: more than {INCLUSIONS} recipes take in one another", fix="write them into one")
        if self.begun > RECIPES:
            raise InputError(f"{path}: more than {RECIPES} recipes are taken in", fix="write some of them into one")

    def _merge(self, path: Path, above: tuple[Path, ...]) -> Delta:
        recipe = read_recipe(path)
        deltas = [self.run(item.path, above) if item.is_recipe else _load(item, path.parent) for item in recipe.inputs]
        weights = None
        if any(item.weight is not None for item in recipe.inputs):
            weights = [item.weight or Weight() for item in recipe.inputs]
        try:
            merged = merge(deltas, weights=weights, **recipe.options)
        except DeltaError as error:
            raise type(error)(f"{path}: {error.message}", fix=error.fix) from None
        return merged if recipe.title is None else merged.with_title(recipe.title)


def _place(path: Path) -> Path:
    with system_errors(path, InputError):
        try:
            return path.resolve()
        except RuntimeError as error:  # a loop of links
            raise InputError(f"{path}: is not a path that can be read ({error})") from None


def _load(item: Input, folder: Path) -> Delta:
    on_hub = isinstance(locate(item.text, folder), Reference)
    return load(item.text if on_hub else item.path)
