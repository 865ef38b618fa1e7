"""A weight of an input: one factor on its δ, or others for the parameters that selectors name (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.selectors.match import match


@dataclass(frozen=True)
class Weight:
    """A factor on δ.

    Attributes:
        default: for every parameter that no selector names.
        where: other factors by selector; of several that name a parameter, the last one counts.
    """

    default: float = 1.0
    where: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.default, *self.where.values()))):
            raise InputError("weights must be finite numbers")

    def by_name(self, metadata: Metadata, sample_size: int | None = None) -> dict[str, float]:
        """Return the factor of each parameter of a delta.

        Args:
            metadata: of the delta.
            sample_size: the width of the latents that addresses count from; what the metadata say if not given.

        Raises:
            InputError: `sample_size` is less than 1.
            SelectionError: a selector is unknown or matches nothing.
        """
        base = metadata.base
        size = base.sample_size if sample_size is None else sample_size
        shapes = {name: parameter.shape for name, parameter in metadata.parameters.items()}
        factors = dict.fromkeys(shapes, self.default)
        for selector, factor in self.where.items():
            names = match(shapes, [selector], sample_size=size, layout=base.attentions)
            factors |= dict.fromkeys(names, factor)
        return factors

    def record(self) -> JSON:
        """Return what a lineage says of it: a number, or an object with `default` and, in order, `where`."""
        if not self.where:
            return self.default
        return {"default": self.default, "where": [[selector, factor] for selector, factor in self.where.items()]}


Amount = float | Mapping[str, float] | Weight
"""A weight as callers give it: a number, or a mapping of selectors to numbers with 1 for what none names."""

WeightedDelta = Delta | tuple[Delta, Amount]
"""An input of operations on several deltas: a delta, whose weight is 1, or a pair of a delta and its weight."""


def weigh(inputs: Iterable[WeightedDelta], weights: Sequence[Amount] | None = None) -> list[tuple[Delta, Weight]]:
    """Return every delta with its weight, in order.

    Args:
        inputs: deltas, or pairs of a delta and its weight.
        weights: one for each delta, where they do not come in pairs.

    Raises:
        InputError: an input is neither, weights come in both ways, are not as many as the deltas, or no finite numbers.
    """
    pairs = [_pair(item, number) for number, item in enumerate(inputs, 1)]
    if weights is None:
        return [(delta, as_weight(weight)) for delta, weight in pairs]
    if any(weight is not None for _, weight in pairs):
        raise InputError("weights come twice: in pairs with deltas, and as `weights`", fix="give them in one way")
    factors = [as_weight(weight) for weight in weights]
    if len(factors) != len(pairs):
        raise InputError(f"{len(pairs)} deltas need as many weights, {len(factors)} were given")
    return [(delta, factor) for (delta, _), factor in zip(pairs, factors, strict=True)]


def _pair(item: Any, number: int) -> tuple[Delta, Any]:
    """Return a delta and what is given as its weight, None if nothing is."""
    if isinstance(item, Delta):
        return item, None
    if isinstance(item, tuple) and [isinstance(part, Delta) for part in item] == [True, False] and item[1] is not None:
        return item
    raise InputError(
        f"input {number} is neither a delta nor a pair (delta, weight), but of type {type(item).__name__}",
        fix="open files with `load`",
    )


def as_weight(value: Amount | None) -> Weight:
    """Return a weight from what a caller gives, 1 where that is None.

    Raises:
        InputError: it is no number or not finite.
    """
    if value is None:
        return Weight()
    if isinstance(value, Weight):
        return value
    if isinstance(value, Mapping):
        return Weight(1.0, {selector: as_factor(factor, selector) for selector, factor in value.items()})
    return Weight(as_factor(value, "a weight"))


def as_factor(value: float, what: str) -> float:
    """Return a number in float64; raise InputError, calling it `what`, if it is none or float64 ends before it."""
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{what}: the number is too large") from None
    except (TypeError, ValueError):
        raise InputError(f"{what}: must be a number, is of type {type(value).__name__}") from None
