"""Show where a delta acts: the energy of each layer and block, and how far its singular values are stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.format.delta import Delta

from .blocks import Block, blocks_of
from .flat_layout import FlatLayout, flat_values
from .stats import wide

Sigmas = Mapping[str, NDArray[np.float64]]
"""The base's singular values, descending, by parameter name; norms have none."""


@dataclass(frozen=True)
class Part:
    """What a delta does to some of its parameters.

    Attributes:
        energy: Σ δ², in float64.
        low: the least ReLU(σ + δ)/σ of singular values that are not null, or the least δ where σ is not known; None
            where there are none, as in norms.
        high: the greatest, likewise.
        parameters: how many.
        numbers: the length of their δ, in all.
    """

    energy: float
    low: float | None
    high: float | None
    parameters: int
    numbers: int


@dataclass(frozen=True)
class Profile:
    """Where a delta acts.

    Attributes:
        of_sigma: whether ranges are of ReLU(σ + δ)/σ; else they are of δ.
        layers: by parameter name, in the order of `blocks`.
        blocks: in the order of the forward pass as far as names tell.
        largest: the largest |δ|.
    """

    of_sigma: bool
    layers: Mapping[str, Part]
    blocks: Mapping[Block, Part]
    largest: float

    @property
    def energy(self) -> float:
        """Σ δ² of all of it."""
        return sum(part.energy for part in self.blocks.values())


def profile(delta: Delta, sigmas: Sigmas | None = None) -> Profile:
    """Return where a delta acts.

    Args:
        delta: the delta.
        sigmas: the base's singular values of all its spectral parameters; without them ranges are of δ.

    Raises:
        TensorError: a value of it is not valid.
    """
    parameters = delta.metadata.parameters
    layout, values = FlatLayout(parameters), _flat(delta)
    starts = [place.start for place in layout.slices.values()]
    energies = np.add.reduceat(np.square(values), starts) if starts else np.zeros(0)
    stretched = values if sigmas is None else _stretched(layout, values, sigmas)
    known = np.isfinite(stretched)
    lows = np.minimum.reduceat(np.where(known, stretched, np.inf), starts) if starts else np.zeros(0)
    highs = np.maximum.reduceat(np.where(known, stretched, -np.inf), starts) if starts else np.zeros(0)
    parts = {
        name: Part(float(energy), _finite(low), _finite(high), 1, parameter.size)
        for (name, parameter), energy, low, high in zip(parameters.items(), energies, lows, highs, strict=True)
    }
    groups = blocks_of(parameters)
    blocks = {block: together([parts[name] for name in names]) for block, names in groups.items()}
    layers = {name: parts[name] for names in groups.values() for name in names}
    return Profile(sigmas is not None, layers, blocks, float(np.abs(values).max(initial=0.0)))


def together(parts: list[Part]) -> Part:
    """Return what is true of some parts together."""
    lows = [part.low for part in parts if part.low is not None]
    highs = [part.high for part in parts if part.high is not None]
    return Part(
        sum(part.energy for part in parts),
        min(lows, default=None),
        max(highs, default=None),
        sum(part.parameters for part in parts),
        sum(part.numbers for part in parts),
    )


def _flat(delta: Delta) -> NDArray[np.float64]:
    """Return all of δ as one array in sorted-name order."""
    values = flat_values(delta)
    if values is not None:
        return values.astype(np.float64)
    return np.concatenate([np.zeros(0), *[wide(delta, name) for name in delta]])


def _stretched(layout: FlatLayout, values: NDArray[np.float64], sigmas: Sigmas) -> NDArray[np.float64]:
    """Return ReLU(σ + δ)/σ, and NaN where there is no σ or it is null."""
    sigma = np.full(layout.size, np.nan)
    for name, parameter in layout.parameters.items():
        if (found := sigmas.get(name)) is not None:
            start = layout.slices[name].start
            count = parameter.size - parameter.null
            sigma[start : start + count] = found[:count]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: NDArray[np.float64] = np.maximum(sigma + values, 0.0) / sigma
    return ratios


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
