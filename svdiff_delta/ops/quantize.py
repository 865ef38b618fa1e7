"""Other number formats for δ, with a bound on what they lose (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta, check_range
from svdiff_delta.format.dtypes import LARGEST, Stored, StoredDtype, encode
from svdiff_delta.format.lineage import Record

from .combine import combine_metadata

WIDER: Final[Mapping[StoredDtype, StoredDtype]] = {"I8": "F16", "F16": "F32", "BF16": "F32"}
"""The format that a parameter gets where the wanted one would lose too much."""


def quantize(delta: Delta, dtype: StoredDtype = "I8", *, max_error: float = 0.02) -> Delta:
    """Return the delta in another number format; a parameter that would lose too much gets the next wider one.

    Args:
        delta: what to convert; F32 converts back.
        dtype: the format to round to.
        max_error: the largest ‖rounded − δ‖ / ‖δ‖ of a parameter.

    Raises:
        InputError: `max_error` is negative or not a number.
        TensorError: a value is too large even for the wider format.
    """
    if not max_error >= 0:
        raise InputError(f"the largest error must be a number from 0, is {max_error}")
    stored = {name: _rounded(name, delta, dtype, max_error) for name in delta}
    record = Record("quantize", {"dtype": dtype, "max_error": float(max_error)})
    return Delta.from_stored(stored, combine_metadata([delta], delta.metadata.parameters, record))


def _rounded(name: str, delta: Delta, dtype: StoredDtype, max_error: float) -> Stored:
    values = delta[name].astype(np.float64)
    if delta.dtype_of(name) == dtype:
        return delta.stored[name]
    if np.abs(values).max(initial=0.0) <= LARGEST[dtype]:
        stored = encode(values, dtype)
        error = np.linalg.norm(stored.decode() - values)
        if dtype not in WIDER or error <= max_error * np.linalg.norm(values):
            return stored
    if dtype not in WIDER:
        check_range(name, values, dtype)
    return _rounded(name, delta, WIDER[dtype], max_error)
