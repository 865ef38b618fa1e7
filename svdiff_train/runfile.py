"""A run as a TOML file: what `svdiff train --config` reads, and what is written next to a result."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import tomli_w

from svdiff_delta._atomic import replace_file
from svdiff_delta.errors import InputError

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
        InputError: it cannot be read, is no TOML, or has a key that is no setting.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: could not be read as TOML ({error})") from None
    known = {field.name for field in fields(TrainConfig)} | {*PLACES}
    if unknown := sorted(found.keys() - known):
        raise InputError(f"{path}: {unknown[0]!r} is no setting", fix=f"known are {', '.join(sorted(known))}")
    for key in PLACES:
        if isinstance(place := found.get(key), str) and (key == "images" or (path.parent / place).exists()):
            found[key] = str(path.parent / place)
    if (tables := found.get("concepts")) is not None:
        if not isinstance(tables, list):
            raise InputError(f"{path}: concepts must be tables", fix="write [[concepts]] above each")
        found["concepts"] = [_concept(path, table) for table in tables]
    return found


def _concept(path: Path, table: Any) -> dict[str, Any]:
    """Return a table of a concept, its folder as seen from here."""
    if not isinstance(table, dict):
        raise InputError(f"{path}: concepts must be tables", fix="write [[concepts]] above each")
    if unknown := sorted(table.keys() - CONCEPT):
        raise InputError(
            f"{path}: {unknown[0]!r} is no setting of a concept", fix=f"known are {', '.join(sorted(CONCEPT))}"
        )
    images = table.get("images")
    return {**table, "images": str(path.parent / images)} if isinstance(images, str) else table


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
    plain["base"] = _relative(Path(base), path) if Path(base).exists() else base
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
