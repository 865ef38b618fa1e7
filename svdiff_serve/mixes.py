"""Read mixes: which deltas a picture is painted with, by what weights, and on which layers.

`dog:0.8+cat:0.5@unet-ca` is 0.8 times the δ called `dog`, plus half of `cat` on cross-attention alone. A name, a weight
or a selector in which one of the marks `+`, `:`, `@` stands is written with `%2B`, `%3A`, `%40`, and `%` as `%25`.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Final
from urllib.parse import quote, unquote

from svdiff_delta._util.limits import PATTERN
from svdiff_delta.errors import InputError, SelectionError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.select import part_of
from svdiff_delta.selectors.match import match

from .errors import RefusedError, UnknownDeltaError

TERMS: Final = 16
"""Deltas of one mix."""

LONGEST: Final = 4 * PATTERN
"""Characters of a mix."""

NEAREST: Final = 3
"""Names that an error offers."""

LOOKED_AT: Final = 500
"""Names before and after the place of one that is not there, among which the nearest are looked for."""

_SAFE: Final = "/ -_."
_MARKS: Final = re.compile(r"[%+:@]")


@dataclass(frozen=True)
class Term:
    """One δ of a mix.

    Attributes:
        name: of the δ.
        weight: its factor.
        selector: the layers that it acts on; empty for all of its own.
    """

    name: str
    weight: float = 1.0
    selector: str = ""

    def __str__(self) -> str:
        weight = "" if self.weight == 1.0 else f":{quote(repr(self.weight))}"
        selector = f"@{quote(self.selector, safe=_SAFE + '(),*?[]!')}" if self.selector else ""
        return f"{quote(self.name, safe=_SAFE)}{weight}{selector}"

    def part(self, delta: Delta) -> Delta:
        """Return the part of this term's δ that its selector names.

        Raises:
            RefusedError: the selector is unknown, or matches nothing.
        """
        if not self.selector:
            return delta
        about = delta.metadata
        shapes = {name: parameter.shape for name, parameter in about.parameters.items()}
        given = self.selector.split(",") if not self.selector.startswith("(") else [self.selector]
        try:
            names = match(shapes, given, sample_size=about.base.sample_size, layout=about.base.attentions)
        except (SelectionError, InputError) as error:
            raise RefusedError(f"{self.name}: {error.message}", fix=error.fix, field="model") from None
        return part_of(delta, dict.fromkeys(names))


@dataclass(frozen=True)
class Mix:
    """What a picture is painted with: terms in order; none of them is the base."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.terms))


def parse_mix(text: str, base: str) -> Mix:
    """Return the mix that a text names.

    Args:
        text: such as `dog:0.8+cat:0.5@unet-ca`.
        base: the name that stands for the base alone; it may not be part of a sum.

    Raises:
        RefusedError: it is too long, has too many terms or an empty one, names a δ twice on the same layers, or a
            weight is not finite.
    """
    if text == base:
        return Mix()
    if len(text) > LONGEST:
        raise RefusedError(f"the mix has more than {LONGEST:,} characters", fix="name fewer deltas", field="model")
    parts = text.split("+")
    if len(parts) > TERMS:
        raise RefusedError(
            f"the mix has {len(parts)} deltas, {TERMS} is the most",
            fix="add some of them up with `svdiff add`",
            field="model",
        )
    terms = tuple(_term(part) for part in parts)
    seen = [(term.name, term.selector) for term in terms]
    if twice := next((key for index, key in enumerate(seen) if key in seen[:index]), None):
        raise RefusedError(
            f"the mix names {twice[0]!r} twice on the same layers",
            fix="name it once, with the sum of its weights",
            field="model",
        )
    return Mix(terms)


def _term(text: str) -> Term:
    rest, _, selector = text.partition("@")
    name, mark, weight = rest.partition(":")
    if not name:
        raise RefusedError(
            f"{text!r}: a mix is NAME[:WEIGHT][@LAYERS], added with +",
            fix="such as dog:0.8+cat:0.5@unet-ca",
            field="model",
        )
    try:
        factor = float(unquote(weight)) if mark else 1.0
    except ValueError:
        raise RefusedError(
            f"{text!r}: {weight!r} is no weight", fix="write a number, such as dog:0.8", field="model"
        ) from None
    if not isfinite(factor):
        raise RefusedError(f"{text!r}: the weight {weight} is not a finite number", fix="such as 0.8", field="model")
    return Term(unquote(name), factor, unquote(selector))


def escaped(name: str) -> str:
    """Return how a mix names a δ: what marks would be read as its parts is written %2B and so on."""
    return _MARKS.sub(lambda found: quote(found[0], safe=""), name)


def unknown(name: str, names: Sequence[str]) -> UnknownDeltaError:
    """Return the error for a name that is not there, with the nearest of those that are.

    Args:
        name: what was asked for.
        names: what is there, sorted; of very many those are looked at that begin alike.
    """
    place = bisect(names, name)
    some = names[max(0, place - LOOKED_AT) : place + LOOKED_AT]
    near = get_close_matches(name, some, NEAREST, 0.5)
    fix = f"the nearest are {', '.join(map(repr, near))}" if near else "GET /v1/models names all"
    return UnknownDeltaError(f"there is no delta {name!r} here", fix=fix, field="model")
