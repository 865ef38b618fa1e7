"""Cells that the pages show beside the claims, and that decide none: measured last, within what the budget leaves."""

from __future__ import annotations

from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import NEGATIVES, Choices
from reproduce.paper.subjects import SINGLES, TRIPLE, slug
from svdiff_delta.selectors.subsets import PAPER

from .pairs import METHODS, Variant, pair_cell, recipe
from .singles import RANKS, cell, rank_cell, subset_cell

FEW: Final = ("black cat", "police car", "pagoda")
"""Subjects of what is only shown."""
TRIPLE_SEEDS: Final = (0, 1)
VARIANTS: Final[tuple[Variant, ...]] = ("plain", "mix")


def cells(choices: Choices) -> list[Cell]:
    """Return LoRA on every subject, three subjects at once, and the rest of Table 1 and of the ranks, for three."""
    return [
        *(cell(choices, name, "lora", 0) for name in SINGLES),
        *triple_cells(choices),
        *(subset_cell(choices, name, subset, 0) for name in FEW for subset in PAPER),
        *(rank_cell(choices, name, rank, 0) for name in FEW for rank in RANKS),
    ]


def triple_cells(choices: Choices) -> list[Cell]:
    """Return three subjects at once, by both methods, with and without mixed samples."""
    found = []
    for seed in TRIPLE_SEEDS:
        for variant in VARIANTS:
            for method in METHODS:
                more = {"steps": choices.triple_steps} | ({"mix": choices.triple_mix} if variant == "mix" else {})
                made = recipe(choices, TRIPLE, method, variant, seed, **more)
                name = f"{slug(*TRIPLE)}-{method}-{variant}-{seed}"
                found.append(pair_cell("b", name, made, negative=NEGATIVES[choices.negative], shown=seed == 0))
    return found
