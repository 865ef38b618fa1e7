"""Guess an architecture from the names and widths of layers, to name it in errors."""

from __future__ import annotations

from collections.abc import Mapping

from svdiff_delta.format.adapter_families import family_of_modules


def looks_like(widths: Mapping[str, int]) -> str:
    """Return the architecture that layers look like; empty if nothing tells.

    Args:
        widths: the number of inputs of each layer (0 if unknown), by any spelling of its name.
    """
    return family_of_modules(widths)
