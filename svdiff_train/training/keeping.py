"""Name what a run keeps while it goes on, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import states


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What a run keeps while it goes on, and where.

    Attributes:
        folder: of everything.
        every: steps between states, from which `resume` goes on.
        newest: how many states stay.
        results_every: steps between results that all stay, so that the best can be chosen afterwards; None for none.
        resume: whether to go on from the newest state that is there.
    """

    folder: Path
    every: int = 100
    newest: int = 2
    results_every: int | None = None
    resume: bool = False

    @property
    def states(self) -> Path:
        """The folder of states."""
        return self.folder / "state"


def newest_state(keeping: Keeping | None) -> Path | None:
    """Return the file of the newest state; None if there is none, or none is kept."""
    return None if keeping is None else next(reversed(states(keeping.states)), None)
