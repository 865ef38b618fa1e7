"""Globs and regular expressions from files, arguments and recipes: bounded, and matched in linear time."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from functools import lru_cache

from svdiff_delta._text.printable import shown
from svdiff_delta.errors import DeltaError, InputError

from .limits import PATTERN
from .regex import Pattern


def glob(pattern: str, error: type[DeltaError] = InputError) -> Callable[[str], bool]:
    """Return a test of names by a glob: `*`, `?` and `[…]`, in which case counts.

    What the standard library makes of a glob never tries a star again (it is an atomic group), so that it takes time by
    the length of the name alone, times the stars.

    Raises:
        DeltaError: as `error`, if the pattern is too long.
    """
    check_pattern(pattern, error)
    return _compiled(pattern)


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> Callable[[str], bool]:
    match = re.compile(translate(pattern)).match
    return lambda name: match(name) is not None


def check_pattern(pattern: str, error: type[DeltaError] = InputError) -> None:
    """Raise `error` if a pattern or selector is longer than any name."""
    if len(pattern) > PATTERN:
        raise error(f"{shown(pattern)}: has more than {PATTERN:,} characters", fix="write a shorter pattern")


@lru_cache(maxsize=512)
def expression(pattern: str) -> Pattern:
    """Return a compiled regular expression.

    Raises:
        InputError: it is too long, broken, or says what this program's matcher does not know.
    """
    try:
        return Pattern(pattern)
    except ValueError as error:
        raise InputError(f"{shown(pattern)}: is no pattern of a layer's name ({error})") from None
