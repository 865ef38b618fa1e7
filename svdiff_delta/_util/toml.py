"""TOML of a bounded size."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from svdiff_delta.errors import InputError

from .json import is_deeper
from .limits import NAME_PARTS, Limit
from .reading import decode, read_bytes

_PART: Final = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG: Final = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}){{{NAME_PARTS}}}")
"""A dotted name of too many parts: the standard library takes time by the square of them."""


def read_toml(path: Path, limit: Limit) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        InputError: it cannot be read, is no TOML, or is larger than `limit`; the message names the file.
    """
    raw = read_bytes(path, limit.bytes)
    text = decode(raw, path)
    if _LONG.search(text):
        raise InputError(f"{path}: has a name of more than {NAME_PARTS} parts")
    # Every value of a list or a table stands behind one of these, so the count is never less than there are.
    if sum(map(text.count, "=,[\n")) > limit.nodes:
        raise InputError(f"{path}: has more than {limit.nodes:,} values", fix="leave out what a run does not need")
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply ({limit.depth} levels are allowed)") from None
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: could not be read as TOML ({error})") from None
    if is_deeper(found, limit.depth):
        raise InputError(f"{path}: is nested too deeply ({limit.depth} levels are allowed)")
    return found
