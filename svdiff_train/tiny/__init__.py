"""The embedded base: a tiny Stable Diffusion that ships with the package, called `tiny` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svdiff_delta.base_model.base import Base

NAME = "tiny"


def base_path() -> Path:
    """Return the folder of the embedded pipeline, in diffusers' layout."""
    return Path(__file__).parent / "base"


def pictures_path(subject: str) -> Path:
    """Return the folder with the pictures of one of the demo's subjects."""
    return Path(__file__).parent / "pictures" / subject


def open_tiny() -> Base:
    """Open the embedded base; delta files made from it name it `tiny`."""
    from svdiff_delta.base_model.base import open_base

    return open_base(base_path(), repository=NAME)
