"""A weight of an input: one factor on its δ, or others for the parameters that selectors name (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import InputError
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


def as_weight(value: float | Mapping[str, float] | Weight) -> Weight:
    """Return a weight from a number, or from a mapping of selectors to numbers with 1 for what none names.

    Raises:
        InputError: it is not finite.
    """
    if isinstance(value, Weight):
        return value
    if isinstance(value, Mapping):
        return Weight(1.0, {selector: as_factor(factor, selector) for selector, factor in value.items()})
    return Weight(as_factor(value, "a weight"))


def as_factor(value: float, what: str) -> float:
    """Return a number in float64; raise InputError, calling it `what`, where float64 ends before it."""
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{what}: the number is too large") from None
