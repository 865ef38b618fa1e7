"""Parameters laid out one after the other in a flat array, and deltas that lie so already (spec, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.parameter import Parameter


class FlatLayout:
    """Where each parameter stands.

    Attributes:
        parameters: by sorted name.
        slices: where each of them stands.
        size: how many numbers there are in all.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = parameters
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, parameter in parameters.items():
            self.slices[name] = slice(self.size, self.size + parameter.size)
            self.size += parameter.size


def flat_values(delta: Delta) -> NDArray[np.float32] | None:
    """Return all values of a delta as one array in sorted-name order, checked at once, without a loop over parameters.

    None where they must be looked at one by one: they are not all F32, some parameter has runs that would have to be
    checked, or one has another length or a value that is not finite, which an error must name.
    """
    if any(item.tied or item.null for item in delta.metadata.parameters.values()):
        return None
    values = delta.flat()
    if values is None:
        stored = [(delta.stored[name], parameter) for name, parameter in delta.metadata.parameters.items()]
        if any(item.dtype != "F32" or len(item.data) != 4 * parameter.size for item, parameter in stored):
            return None
        values = np.frombuffer(b"".join(item.data for item, _ in stored), "<f4")
    # A float64 sum of float32 numbers is finite if and only if all of them are.
    return values if np.isfinite(values.sum(dtype=np.float64)) else None
