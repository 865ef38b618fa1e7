"""Looking at deltas in numbers: norms by block, cosines between deltas, interference of a sum."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta

from .combine import combine_parameters

_UNET_BLOCK: Final = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.")
_LAYER: Final = re.compile(r"(?:layers?|blocks|transformer_blocks|single_transformer_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Summary:
    """What some parameters have in common.

    Attributes:
        parameters: how many.
        numbers: the length of their δ, in all.
        norm: the Euclidean norm of all of it.
        largest: the largest |δ|.
    """

    parameters: int
    numbers: int
    norm: float
    largest: float


@dataclass(frozen=True)
class Interference:
    """How two deltas of one base get in each other's way when they are added.

    Attributes:
        cosine: of their common parameters, taken as one vector.
        conflicts: the share of coordinates that both move, in opposite directions.
        clipped: how many σ + δ₁ + δ₂ are below 0, so that the ReLU cuts them; None where σ is not known.
    """

    cosine: float
    conflicts: float
    clipped: int | None


@dataclass(frozen=True)
class Difference:
    """How one delta differs from another.

    Attributes:
        only_a: parameters that only the first shifts; they count as zeros in the second.
        only_b: parameters that only the second shifts.
        norms: the norm of the difference in each parameter of either.
        norm: of all of it.
        relative: `norm` over the norm of the first; infinite if that is 0 and they differ.
    """

    only_a: list[str]
    only_b: list[str]
    norms: dict[str, float]
    norm: float
    relative: float

    @property
    def changed(self) -> int:
        """In how many parameters they differ."""
        return sum(norm > 0 for norm in self.norms.values())

    @property
    def equal(self) -> bool:
        """Whether they hold the same δ under the same names."""
        return not (self.only_a or self.only_b or self.changed)


def difference(a: Delta, b: Delta) -> Difference:
    """Return how b differs from a.

    Raises:
        BaseMismatchError: they were made for different bases.
    """
    names = list(combine_parameters([a, b]))
    norms_by_name = {}
    for name in names:
        x = wide(a, name) if name in a else np.zeros(1)
        y = wide(b, name) if name in b else np.zeros(1)
        norms_by_name[name] = float(np.linalg.norm(x - y))
    norm, whole = float(np.linalg.norm(list(norms_by_name.values()))), summarize(a).norm
    relative = norm / whole if whole else (float("inf") if norm else 0.0)
    only_a, only_b = [name for name in names if name not in b], [name for name in names if name not in a]
    return Difference(only_a, only_b, norms_by_name, norm, relative)


def relative_difference(a: Delta, b: Delta) -> tuple[float, float, str]:
    """Return ‖b − a‖ / ‖a‖ in all, the largest of a single parameter, and its name; a δ of 0 counts as 0."""
    found, own = difference(a, b), norms(a)
    shares = {name: norm / own[name] if own.get(name) else 0.0 for name, norm in found.norms.items()}
    worst = max(shares, key=lambda name: shares[name])
    return found.relative, shares[worst], worst


def block_of(name: str) -> str:
    """Return the block that a parameter belongs to, such as `unet down.1`, `unet mid` or `text_encoder 3`."""
    component, _, key = name.partition(".")
    if match := _UNET_BLOCK.match(key):
        return f"{component} mid" if match[3] else f"{component} {match[1]}.{match[2]}"
    if match := _LAYER.search(key):
        return f"{component} {match[1]}"
    return f"{component} {key.partition('.')[0]}"


def summarize(delta: Delta) -> Summary:
    """Return the summary of a whole delta."""
    return _summary([wide(delta, name) for name in delta])


def by_block(delta: Delta) -> dict[str, Summary]:
    """Return a summary of each block, in the order of the forward pass as far as names tell."""
    blocks = in_blocks(delta)
    return {block: _summary([wide(delta, name) for name in names]) for block, names in blocks.items()}


def in_blocks(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the parameters of each block, in the order of the forward pass as far as names tell."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(block_of(name), []).append(name)
    return {block: members[block] for block in sorted(members, key=_order)}


def norms(delta: Delta) -> dict[str, float]:
    """Return the Euclidean norm of each parameter's δ, by sorted name."""
    return {name: float(np.linalg.norm(wide(delta, name))) for name in delta}


def cosines(a: Delta, b: Delta) -> dict[str, float]:
    """Return the cosine between two deltas in each parameter that both shift (paper, Fig. 9a).

    A parameter in which one of them is all zeros has no direction and is left out.

    Raises:
        BaseMismatchError: they were made for different bases.
        InputError: they have no parameter in common that both move.
    """
    combine_parameters([a, b])
    found = {}
    for name in a:
        if name in b:
            x, y = wide(a, name), wide(b, name)
            length = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
            if length:
                found[name] = float(x @ y) / length
    if not found:
        raise InputError("the deltas move no parameter in common", fix="compare deltas of the same layers")
    return found


def mean_cosine(a: Delta, b: Delta) -> float:
    """Return the mean of `cosines` over the layers, as the paper's Fig. 9a has it."""
    return float(np.mean(list(cosines(a, b).values())))


def correlations(deltas: Sequence[Delta]) -> NDArray[np.float64]:
    """Return the symmetric matrix of mean cosines between all pairs."""
    result = np.eye(len(deltas))
    for row in range(len(deltas)):
        for column in range(row):
            result[row, column] = result[column, row] = mean_cosine(deltas[row], deltas[column])
    return result


def interference(a: Delta, b: Delta, sigmas: Mapping[str, NDArray[np.float64]] | None = None) -> Interference:
    """Return what stands in the way of a + b.

    Args:
        a: one delta.
        b: another, of the same base.
        sigmas: the base's singular values by parameter name; spectral parameters that are not named do not count.

    Raises:
        BaseMismatchError: they were made for different bases.
    """
    parameters = combine_parameters([a, b])
    common = [name for name in parameters if name in a and name in b]
    x = np.concatenate([np.zeros(0), *[wide(a, name) for name in common]])
    y = np.concatenate([np.zeros(0), *[wide(b, name) for name in common]])
    length = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    both = int(((x != 0) & (y != 0)).sum())
    clipped = None
    if sigmas is not None:
        clipped = sum(
            int((sigma + _or_zeros(a, name, sigma) + _or_zeros(b, name, sigma) < 0).sum())
            for name, sigma in sigmas.items()
            if name in parameters
        )
    conflicts = float((x * y < 0).sum()) / both if both else 0.0
    return Interference(float(x @ y) / length if length else 0.0, conflicts, clipped)


def wide(delta: Delta, name: str) -> NDArray[np.float64]:
    """Return δ of one parameter in float64."""
    return delta[name].astype(np.float64)


def _or_zeros(delta: Delta, name: str, like: NDArray[np.float64]) -> NDArray[np.float64]:
    return wide(delta, name) if name in delta else np.zeros_like(like)


def _summary(values: Sequence[NDArray[np.float64]]) -> Summary:
    squares = sum(float(value @ value) for value in values)
    largest = max((float(np.abs(value).max(initial=0.0)) for value in values), default=0.0)
    return Summary(len(values), sum(value.size for value in values), float(np.sqrt(squares)), largest)


_WAYS: Final = {"conv_in": 0, "time_embedding": 1, "down": 2, "mid": 3, "up": 4, "conv_norm_out": 5, "conv_out": 6}


def _order(block: str) -> tuple[str, int, int, str]:
    component, _, rest = block.partition(" ")
    way, _, index = rest.partition(".")
    number = index if index.isdigit() else way
    return component, _WAYS.get(way, 2), int(number) if number.isdigit() else -1, rest
