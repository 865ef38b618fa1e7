"""What lies in a folder."""

from __future__ import annotations

from pathlib import Path


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, hidden ones too, sorted."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder by name, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
