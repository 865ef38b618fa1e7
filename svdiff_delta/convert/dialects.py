"""The registry of dialects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .dialect import Dialect
from .full import full

DELTA: Final = "delta"
"""What every dialect is converted from and to: a delta file."""

DIALECTS: Final[Mapping[str, Dialect]] = {"full": full}
"""Dialects by the name that commands take."""
