"""Say what a mix of the board is: a weight for each δ, times factors for parts of it; as a recipe it has weights.

The weight of a parameter is its δ's weight times the factor of the last part whose selector names it, or times 1. So a
mix is a recipe of `svdiff merge` whose selectors have the products as their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nextafter
from typing import Annotated, ClassVar, Final

import msgspec

from svdiff_delta._util.limits import PATTERN
from svdiff_delta.ops.weights import Weight
from svdiff_serve.errors import LimitError, RefusedError
from svdiff_serve.mixes import TERMS

PARTS: Final = 64
"""Parts of one δ."""

LARGEST: Final = 1e6
"""Weights and factors lie between minus this and this."""

LONGEST: Final = 1024
"""Characters of a name of a δ."""

ALL: Final = "*"
"""The selector of all parameters, where a lineage gives them weights that are no multiples of a δ's own."""

_Text = Annotated[str, msgspec.Meta(max_length=LONGEST)]
_Selector = Annotated[str, msgspec.Meta(min_length=1, max_length=PATTERN)]
_Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]


class Term(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One δ of a mix.

    Attributes:
        name: of the δ.
        weight: its factor.
        parts: other factors by selector, which count beside the weight; of several that name a parameter the last one.
    """

    NOUN: ClassVar[str] = "a δ of a mix"

    name: _Text
    weight: _Number = 1.0
    parts: Annotated[tuple[tuple[_Selector, _Number], ...], msgspec.Meta(max_length=PARTS)] = ()

    def weights(self) -> Weight:
        """Return the weight that a recipe has."""
        # + 0.0 makes 0 of −0, which no text tells from it.
        where = {selector: self.weight * factor + 0.0 for selector, factor in self.parts}
        return Weight(self.weight + 0.0, where)


class Mix(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Deltas with weights; none is the base alone."""

    NOUN: ClassVar[str] = "a mix"

    terms: Annotated[tuple[Term, ...], msgspec.Meta(max_length=TERMS)] = ()


def check_mix(mix: Mix, field: str = "mix") -> None:
    """Check what types do not say: that nothing is named twice.

    Raises:
        RefusedError: a δ is, or a selector of one.
    """
    names = [term.name for term in mix.terms]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise RefusedError(f"the mix names {twice!r} twice", fix="add its weights up", field=field)
    for term in mix.terms:
        selectors = [selector for selector, _ in term.parts]
        if len(set(selectors)) < len(selectors):
            raise RefusedError(f"{term.name}: the mix names a part twice", fix="keep one of them", field=field)


def term_of(name: str, weight: Weight) -> Term:
    """Return the δ of a mix that has a recipe's weight, number for number.

    Where a part has a weight that is no multiple of the whole, the whole is 1 and its own weight is a part of all.

    Raises:
        LimitError: it has too many parts, or too large numbers.
    """
    parts = [(selector, _factor(weight.default, value)) for selector, value in weight.where.items()]
    default = weight.default
    if any(factor is None for _, factor in parts):
        default, parts = 1.0, [(ALL, weight.default), *weight.where.items()]
    given = [(selector, factor) for selector, factor in parts if factor is not None]
    numbers = [default, *(factor for _, factor in given)]
    if len(given) > PARTS or not all(isfinite(number) and abs(number) <= LARGEST for number in numbers):
        raise LimitError(f"{name}: its weights are more, or larger, than sliders are for", fix="use its recipe")
    return Term(name=name, weight=default, parts=tuple(given))


def _factor(whole: float, part: float) -> float | None:
    """Return a number that gives a part's weight, bit for bit, when the whole's is multiplied by it; the shortest."""
    if whole == 0.0:
        return 1.0 if part == 0.0 else None
    quotient = part / whole
    for digits in range(13):
        if whole * (short := round(quotient, digits)) == part:
            return short + 0.0
    near: Sequence[float] = (quotient, nextafter(quotient, -LARGEST), nextafter(quotient, LARGEST))
    return next((each for each in near if whole * each == part), None)
