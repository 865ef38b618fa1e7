"""The registry of merge methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .dare import dare_linear, dare_ties
from .linear import linear
from .magnitude import magnitude
from .method import Method
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
