"""One cell of the table of families, and how what was measured becomes one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from svdiff_delta.errors import DeltaError

Kind = Literal["yes", "no", "none", "fault"]


@dataclass(frozen=True)
class Cell:
    """What was found.

    Attributes:
        kind: it works, it does not and says so, it has no meaning, or it went wrong.
        text: the figure, or the reason.
    """

    kind: Kind
    text: str


class NoMeaningError(Exception):
    """What a cell asks for is not there in this family."""


class LackingError(Exception):
    """A part is left out, and is named."""


def measured(measure: Callable[[], str]) -> Cell:
    """Return what a measurement says: its figure, the refusal, or what is wrong without one.

    An `AssertionError` is a fault, and so is every error that is no refusal of ours.
    """
    try:
        return Cell("yes", measure())
    except NoMeaningError as reason:
        return Cell("none", plain(str(reason)))
    except (DeltaError, LackingError) as refusal:
        return Cell("no", plain(str(refusal)))
    except Exception as error:  # noqa: BLE001 - what is not foreseen is what this looks for
        return Cell("fault", plain(f"{type(error).__name__}: {error}"))


def plain(line: str) -> str:
    """Return a reason as one line that a table and a comparison can hold: without the folder it was found in."""
    return " ".join(re.sub(r"(?<!\w)/[^\s:]+/", "", line).split()).replace("|", "/")
