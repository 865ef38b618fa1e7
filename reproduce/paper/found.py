"""The numbers of cells as they are found, each read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .cell import OUTSIDE, Cell, Kept, Numbers


class Found:
    """Finds the numbers of cells in a folder.

    Args:
        folder: holds `cells`.
        base: the base's fingerprint.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self._known: dict[tuple[tuple[str, str], str], Kept] = {}

    def __call__(self, cell: Cell) -> Numbers | None:
        """Return a cell's numbers; None if they are not there, or belong to something else."""
        return self.kept(cell).numbers

    def kept(self, cell: Cell) -> Kept:
        """Return what lies in a cell's place; what is known is not read again."""
        key = cell.place, repr((cell.recipes, cell.about))
        if key not in self._known:
            kept = cell.kept(self.folder, self.base)
            if kept.state != "known":
                return kept
            self._known[key] = kept
        return self._known[key]

    def outside(self, cells: Iterable[Cell], *, searched: bool = True) -> list[str]:
        """Return what lies among the cells and is not used: of other bases, other recipes, or cut off.

        Args:
            cells: that could be asked for.
            searched: whether the search is over; before, other cells may still be asked for.
        """
        cells = list(cells)
        states = Counter(self.kept(cell).state for cell in cells)
        lines = [
            f"{states[state]} of {state}: they are left out, and measured anew" for state in OUTSIDE if states[state]
        ]
        if states["cut off"]:
            lines.append(f"{states['cut off']} cut off in the middle: they are measured anew")
        places = {cell.path(self.folder, self.base) for cell in cells}
        own = self.folder / "cells" / self.base
        more = sum(path not in places for path in own.rglob("*.json"))
        if more:
            why = "the plan does not ask for: they are left out" if searched else "wait for the search to be over"
            lines.append(f"{more} that {why}")
        others = {one: sum(1 for _ in one.rglob("*.json")) for one in sorted(own.parent.glob("*")) if one != own}
        lines += [f"{many} of another base, `{one.name}`: they are left out" for one, many in others.items() if many]
        return lines

    def elsewhere(self, cells: Iterable[Cell]) -> dict[str, int]:
        """Return how many known cells were measured on each other kind of device than a processor."""
        devices = Counter(kept.device for cell in cells if (kept := self.kept(cell)).state == "known")
        return {device: count for device, count in sorted(devices.items()) if device != "cpu"}

    def seconds(self, cells: Iterable[Cell]) -> dict[str, list[float]]:
        """Return what known cells took, by experiment."""
        found: dict[str, list[float]] = {}
        for cell in cells:
            kept = self.kept(cell)
            if kept.state == "known":
                found.setdefault(cell.experiment, []).append(kept.seconds)
        return found
