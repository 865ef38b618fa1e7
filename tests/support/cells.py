"""Cells that processes of their own can find by name."""

from __future__ import annotations

from reproduce.paper.cell import Measured
from reproduce.paper.lab import Lab
from reproduce.paper.sight import Sight


def answered(lab: Lab, sight: Sight) -> Measured:
    """Measure nothing."""
    return Measured({"answer": 42})


def failed(lab: Lab, sight: Sight) -> Measured:
    """Go wrong."""
    raise ArithmeticError("no number")
