"""Claims about subsets of parameters: (d)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.experiments.singles import subset_cell

from .claim import Claim, Group, Part
from .singles import EQUAL, GRAIN, SAME, SUBJECTS, less

LOOKS: Final = (8, 16, 24)


def _parts(*pairs: tuple[str, str]) -> tuple[Part, ...]:
    return tuple(
        Part(f"image alignment, {first} less {second}", less(first, second, "image"), EQUAL, grain=GRAIN)
        for first, second in pairs
    )


def _unit(choices: Choices, *subsets: str) -> Callable[[Group, int], Mapping[str, Cell]]:
    return lambda group, seed: {subset: subset_cell(choices, group[0], subset, seed) for subset in subsets}


def _claim(choices: Choices, name: str, where: str, says: str, *pairs: tuple[str, str]) -> Claim:
    subsets = list(dict.fromkeys(subset for pair in pairs for subset in pair))
    return Claim(
        name, "d", where, says, SAME, _parts(*pairs), SUBJECTS, _unit(choices, *subsets), LOOKS, "class"
    )  # fmt: skip


def claims(choices: Choices) -> tuple[Claim, ...]:
    """Return the claims of (d)."""
    return (
        _claim(
            choices, "cross-attention", "4.4 (1)",
            "All cross-attention layers preserve identity better than keys and values alone.",
            ("unet-ca", "unet-ca-kv"),
        ),
        _claim(
            choices, "blocks", "4.4 (2)",
            "Up-, down- or mid-blocks alone are not enough to keep identity; of them up-blocks do it best.",
            ("unet", "up"), ("unet", "down"), ("unet", "mid"), ("up", "down"), ("up", "mid"),
        ),
        _claim(
            choices, "dimensions", "4.4 (3)",
            "2-D weights have the most influence of the three kinds, and keep identity better than UNet-CA.",
            ("unet-2d", "unet-1d"), ("unet-2d", "unet-4d"), ("unet-2d", "unet-ca"),
        ),
    )  # fmt: skip
