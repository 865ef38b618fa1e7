"""What lies in a folder, and below it."""

from __future__ import annotations

import json
from pathlib import Path

from svdiff_delta._util.atomic import MARKER


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, hidden ones too, sorted."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder and in those below it by relative path, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()} | tree(folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder that this program wrote, without its marker, which must be there."""
    found = tree(folder)
    del found[MARKER]
    return found


def parts(folder: Path) -> dict[str, bytes]:
    """Return the files of a pipeline itself, without its card and whatever else lies beside it."""
    index = json.loads((folder / "model_index.json").read_bytes())
    return {name: raw for name, raw in tree(folder).items() if name.split("/")[0] in {"model_index.json", *index}}
