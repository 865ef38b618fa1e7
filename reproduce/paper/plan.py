"""Which cells there are, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest

from .cell import Cell
from .experiments import combined, edits, pairs, search, shifts, singles
from .subjects import PAIRS, SINGLES


def all_cells() -> list[Cell]:
    """Return every cell: seed 0 first, and of each experiment in turn, so that a part says something of all."""
    experiments = [
        singles.cells(),
        pairs.cells(),
        edits.cells(),
        singles.subset_cells(),
        combined.cells(),
        shifts.style_cells(),
        shifts.correlation_cells(),
        [*singles.rank_cells(), *shifts.scale_cells()],
    ]
    first = [[cell for cell in cells if _seed(cell) == 0] for cells in experiments]
    rest = [[cell for cell in cells if _seed(cell) > 0] for cells in experiments]
    return [*_in_turn(first), *_in_turn(rest)]


def search_cells() -> list[Cell]:
    """Return what recipes are chosen by: measured on request, before the experiments."""
    return search.cells()


def quick_cells() -> list[Cell]:
    """Return one subject, or pair, or picture, and one seed of each experiment."""
    short = SINGLES[0].replace(" ", "_")
    wanted = {
        "a": [f"{short}-{method}-0" for method in singles.METHODS],
        "b": [pairs.cell_name(PAIRS[0], "svdiff", variant, 0) for variant in pairs.VARIANTS],
        "c": ["cat-mushroom-svdiff-0"],
        "d": [f"{subset}-{short}" for subset in ("unet", "unet-ca", "unet-2d")],
        "h": [f"rank-{singles.RANKS[0]}-{short}", f"scales-{short}"],
    }
    return [cell for cell in all_cells() if cell.name in wanted.get(cell.experiment, ())]


def _seed(cell: Cell) -> int:
    return max((recipe.seed for recipe in cell.recipes), default=0)


def _in_turn(groups: Iterable[Iterable[Cell]]) -> list[Cell]:
    return [cell for cell in chain.from_iterable(zip_longest(*groups)) if cell is not None]


def trainings(cells: Iterable[Cell]) -> int:
    """Return how many different trainings cells need."""
    return len({recipe.key() for cell in cells for recipe in cell.recipes})
