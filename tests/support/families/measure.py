"""Measure all cells of a family."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from .cell import Cell, measured
from .lora_cells import lora_in, lora_out
from .model_cells import attached, baked, basis, opened, subset
from .names import BACK, COLUMNS, MODELS, OUT, RUNS, SUBSETS
from .rows import Made
from .run_cells import painted, trained

MODEL_CELLS: Final[dict[str, Callable[[Made], str]]] = {
    "open": opened,
    "basis": basis,
    "attach": attached,
    "bake": baked,
}
RUN_CELLS: Final[dict[str, Callable[[Made], str]]] = {"train": trained, "generate": painted}
TAKING: Final[dict[str, Callable[[Made, str], str]]] = {SUBSETS: subset, OUT: lora_out, BACK: lora_in}


def measure(name: str) -> dict[tuple[str, str], Cell]:
    """Return the cells of a family by table and column."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of their own deprecations, and of what is not installed
        made = Made(name, Path(place))
        return {(group, column): measured(partial(_cell, made, group, column)) for group, column in COLUMNS}


def _cell(made: Made, group: str, column: str) -> str:
    alone = {MODELS: MODEL_CELLS, RUNS: RUN_CELLS}
    return alone[group][column](made) if group in alone else TAKING[group](made, column)
