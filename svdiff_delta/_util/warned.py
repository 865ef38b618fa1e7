"""Warnings: each is given once in a process, and the command line makes a line of it."""

from __future__ import annotations

import warnings
from typing import Final


class DeltaWarning(UserWarning):
    """Something that no result suffers from, and that the user should know."""


_SAID: Final[set[tuple[object, ...]]] = set()
"""What this process has warned of."""


def warn_once(message: str, *about: object) -> None:
    """Warn, once in a process of each thing.

    Args:
        message: what to say.
        about: what it is about; of the same, nothing more is said.
    """
    if about not in _SAID:
        _SAID.add(about)
        warnings.warn(message, DeltaWarning, stacklevel=4)
