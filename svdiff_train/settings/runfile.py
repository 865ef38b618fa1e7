"""A run as a TOML file: what `svdiff train --config` reads, and what is written next to a result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Union, get_type_hints

import msgspec
import tomli_w

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.limits import RUN_FILE
from svdiff_delta._util.toml import read_toml
from svdiff_delta._util.typed import build
from svdiff_delta.errors import InputError
from svdiff_delta.hub_client.reference import exists

from .concept import Concept
from .config import TrainConfig

CONCEPT: Final = frozenset(field.name for field in fields(Concept))
"""What a table of a concept may say."""

PLACES: Final = ("base", "images")
"""What a run file says beside the settings: where the base and the pictures are."""


def read_run(path: Path) -> dict[str, Any]:
    """Return the settings in a run file, with `base` and `images` if it has them; its paths start where it lies.

    Several concepts are tables `[[concepts]]`, each with `images`, `prompt` and whatever else a `Concept` has.

    Raises:
        InputError: it cannot be read, is no TOML, has a key that is no setting, or a value of another type.
    """
    found = read_toml(path, RUN_FILE)
    known = {field.name for field in fields(TrainConfig)} | {*PLACES}
    if unknown := sorted(found.keys() - known):
        raise InputError(f"{path}: {unknown[0]!r} is no setting", fix=f"known are {', '.join(sorted(known))}")
    for key in PLACES:
        if isinstance(place := found.get(key), str) and (key == "images" or exists(path.parent / place)):
            found[key] = str(path.parent / place)
    tables = found.get("concepts")
    if tables is not None and not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise InputError(f"{path}: concepts must be tables", fix="write [[concepts]] above each")
    if tables is not None:
        found["concepts"] = [_concept(path, table) for table in tables]
    build(_RunFile, found, str(path))
    return found


def _concept(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Return a table of a concept, its folder as seen from here."""
    if unknown := sorted(table.keys() - CONCEPT):
        raise InputError(
            f"{path}: {unknown[0]!r} is no setting of a concept", fix=f"known are {', '.join(sorted(CONCEPT))}"
        )
    images = table.get("images")
    return {**table, "images": str(path.parent / images)} if isinstance(images, str) else table


def _optional(kind: type, **others: Any) -> type:
    """Return a Struct of the fields of a dataclass, each of its type or left out."""
    types = {**get_type_hints(kind), **others}
    fields = [(name, Union[each, msgspec.UnsetType], msgspec.UNSET) for name, each in types.items()]  # noqa: UP007
    return msgspec.defstruct(kind.__name__, fields, kw_only=True)


_RunFile: Final = _optional(TrainConfig, base=str, images=str, concepts=list[_optional(Concept)])  # type: ignore[misc]
"""The types of what a run file says."""


def write_run(
    path: Path,
    settings: Mapping[str, Any],
    base: str,
    images: Path | Sequence[Path],
    *,
    overwrite: bool = False,
) -> None:
    """Write a run file; the same settings give the same bytes.

    Args:
        path: the file.
        settings: as `TrainConfig.facts` returns them.
        base: the reference of the base; written relative to the file if it is a path.
        images: the folder of pictures, which is written so too; of concepts, that of each.
        overwrite: whether an older one is replaced.

    Raises:
        OutputError: it exists, or cannot be written.
    """
    plain = {key: value for key, value in settings.items() if key != "concepts" and value is not None}
    plain["base"] = _relative(Path(base), path) if exists(Path(base)) else base
    if isinstance(images, Path):
        plain["images"] = _relative(images, path)
    parts = [tomli_w.dumps(dict(sorted(plain.items())))]
    if not isinstance(images, Path):
        for concept, folder in zip(settings["concepts"], images, strict=True):
            table = {**concept, "images": _relative(folder, path)}
            parts.append(f"\n[[concepts]]\n{tomli_w.dumps(dict(sorted(table.items())))}")
    text = "".join(parts)
    with replace_file(path, overwrite=overwrite) as stream:
        stream.write(text.encode())


def _relative(place: Path, file: Path) -> str:
    return os.path.relpath(place, file.parent)
