"""Define a merge method, its options, and its random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.errors import InputError

Coordinates = NDArray[np.float64]
"""The free numbers of one parameter's δ: one per tied run, none for null singular values."""

Draw = Callable[[int], Coordinates]
"""Returns, for the input of this index, one uniform number in [0, 1) per coordinate."""


@dataclass(frozen=True)
class Options:
    """What a method may be told. A method refuses what it does not use.

    Attributes:
        density: the share of coordinates that are kept, in (0, 1].
        alpha: the share of the first of two inputs, in [0, 1].
        seed: of random draws.
    """

    density: float | None = None
    alpha: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.density is not None and not 0.0 < self.density <= 1.0:
            raise InputError(f"density must be within (0, 1], is {self.density}")
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha must be within [0, 1], is {self.alpha}")
        if self.seed is not None and not 0 <= self.seed < 2**53:
            raise InputError(f"seed must be a whole number from 0 to 2^53 - 1, is {self.seed}")


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        merge: from the inputs' coordinates of one parameter, their weights, the options and the draws to the result's.
        options: the fields of `Options` it uses, with their defaults; None must be given.
        reference: where it comes from.
        inputs: how many inputs it takes; None for any number.
        weighted: whether it uses weights.
        whole: whether it needs δ as it stands, a tied run as often as it is long (its norm then counts in full).
    """

    merge: Callable[[Sequence[Coordinates], Sequence[float], Options, Draw], Coordinates]
    options: dict[str, float | int | None]
    reference: str
    inputs: int | None = None
    weighted: bool = True
    whole: bool = False


DOUBLE_BITS: Final = 53


def uniform(seed: int, name: str, index: int, count: int) -> Coordinates:
    """Return `count` uniform numbers in [0, 1) that depend on seed, parameter name and input index only.

    SHAKE-256 of "svdiff draw 1\\n<seed>\\n<index>\\n<name>" gives 8 bytes for each, little-endian; the upper 53 bits
    count (spec, section 7.6): the same in every implementation.
    """
    stream = hashlib.shake_256(f"svdiff draw 1\n{seed}\n{index}\n{name}".encode()).digest(8 * count)
    bits = np.frombuffer(stream, "<u8") >> np.uint64(64 - DOUBLE_BITS)
    return bits.astype(np.float64) * 2.0**-DOUBLE_BITS


def keep_largest(values: Coordinates, density: float) -> Coordinates:
    """Return the values with all but the ⌊density · n + ½⌋ largest magnitudes set to 0; of equal ones the first stay.

    At least one stays.
    """
    count = max(1, int(density * values.size + 0.5))
    order = np.argsort(-np.abs(values), kind="stable")
    result = np.zeros_like(values)
    result[order[:count]] = values[order[:count]]
    return result


def weighted_sum(values: Sequence[Coordinates], weights: Sequence[float]) -> Coordinates:
    """Return Σ wᵢ vᵢ in the order given."""
    total = np.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        total += weight * value
    return total
