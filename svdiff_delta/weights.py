"""A weight of an input: one factor on its δ, or others for the parameters that selectors name (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from ._json import JSON
from .errors import InputError
from .selectors import match


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

    def by_name(self, shapes: Mapping[str, tuple[int, ...]], sample_size: int | None) -> dict[str, float]:
        """Return the factor of each parameter, given their weights' shapes.

        Raises:
            SelectionError: a selector is unknown or matches nothing.
        """
        factors = dict.fromkeys(shapes, self.default)
        for selector, factor in self.where.items():
            factors |= dict.fromkeys(match(shapes, [selector], sample_size=sample_size), factor)
        return factors

    def record(self) -> JSON:
        """Return what a lineage says of it: a number, or an object with `default` and `where`."""
        return {"default": self.default, "where": dict(self.where)} if self.where else self.default


def as_weight(value: float | Mapping[str, float] | Weight) -> Weight:
    """Return a weight from a number, or from a mapping of selectors to numbers with 1 for what none names.

    Raises:
        InputError: it is not finite.
    """
    if isinstance(value, Weight):
        return value
    if isinstance(value, Mapping):
        return Weight(1.0, {selector: float(factor) for selector, factor in value.items()})
    return Weight(float(value))
