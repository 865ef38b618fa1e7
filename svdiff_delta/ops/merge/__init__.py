"""Merging: n-way methods that go beyond a weighted sum, one small file each (spec, section 7.6)."""

from __future__ import annotations

from .apply import merge as merge
from .methods import METHODS as METHODS

__all__ = ["METHODS", "merge"]
