"""Merging: n-way methods that go beyond a weighted sum, one small file each, and the registry of them (spec, 7.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .dare import dare_linear, dare_ties
from .linear import linear
from .magnitude import magnitude
from .method import Draw, Method, Options
from .slerp import slerp
from .ties import ties

METHODS: Final[Mapping[str, Method]] = {
    "linear": linear,
    "slerp": slerp,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "magnitude": magnitude,
}
"""Merge methods by the name that recipes and commands take."""

__all__ = ["METHODS", "Draw", "Method", "Options"]
