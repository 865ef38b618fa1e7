"""Convert between deltas and other dialects, one small file each (spec, sections 7.8 and 7.9)."""

from __future__ import annotations

from .api import convert as convert
from .direct import convert_directly as convert_directly
from .registry import DIALECTS as DIALECTS

__all__ = ["DIALECTS", "convert", "convert_directly"]
