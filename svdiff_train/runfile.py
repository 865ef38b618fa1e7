"""A run as a TOML file: what `svdiff train --config` reads, and what is written next to a result."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import tomli_w

from svdiff_delta._atomic import replace_file
from svdiff_delta.errors import InputError

from .config import TrainConfig

PLACES: Final = ("base", "images")
"""What a run file says beside the settings: where the base and the pictures are."""


def read_run(path: Path) -> dict[str, Any]:
    """Return the settings in a run file, with `base` and `images` if it has them; its paths start where it lies.

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
    return found


def write_run(path: Path, settings: Mapping[str, Any], base: str, images: Path, *, overwrite: bool = False) -> None:
    """Write a run file; the same settings give the same bytes.

    Args:
        path: the file.
        settings: as `TrainConfig.facts` returns them.
        base: the reference of the base; written relative to the file if it is a path.
        images: the folder of pictures, which is written so too.
        overwrite: whether an older one is replaced.

    Raises:
        OutputError: it exists, or cannot be written.
    """
    places = {"base": _relative(Path(base), path) if Path(base).exists() else base, "images": _relative(images, path)}
    text = tomli_w.dumps({key: value for key, value in sorted({**settings, **places}.items()) if value is not None})
    with replace_file(path, overwrite=overwrite) as stream:
        stream.write(text.encode())


def _relative(place: Path, file: Path) -> str:
    return os.path.relpath(place, file.parent)
