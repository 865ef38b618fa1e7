"""Layer selectors: the paper's twelve subsets (Table 1), globs, and exact names (spec, section 7.5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

from .delta import Delta
from .errors import SelectionError
from .lineage import Record
from .ops import restrict

Rule = Callable[[str, tuple[int, ...]], bool]
"""Whether a parameter of this name, whose weight has this shape, belongs to a subset."""

_CROSS = re.compile(r"\.attn2\.to_(q|k|v|out\.0)\.weight$")
_CROSS_KV = re.compile(r"\.attn2\.to_[kv]\.weight$")


def _in_unet(part: str = "", pattern: re.Pattern[str] | None = None, dims: tuple[int, ...] = ()) -> Rule:
    def rule(name: str, shape: tuple[int, ...]) -> bool:
        return (
            name.startswith(f"unet.{part}")
            and (pattern is None or pattern.search(name) is not None)
            and (not dims or len(shape) in dims)
        )

    return rule


SUBSETS: Final[Mapping[str, Rule]] = {
    "unet": _in_unet(),
    "unet-ca": _in_unet(pattern=_CROSS),
    "unet-ca-kv": _in_unet(pattern=_CROSS_KV),
    "unet-1d": _in_unet(dims=(1,)),
    "unet-2d": _in_unet(dims=(2,)),
    "unet-4d": _in_unet(dims=(4,)),
    "up": _in_unet("up_blocks."),
    "down": _in_unet("down_blocks."),
    "mid": _in_unet("mid_block."),
    "up-ca": _in_unet("up_blocks.", _CROSS),
    "down-ca": _in_unet("down_blocks.", _CROSS),
    "mid-ca": _in_unet("mid_block.", _CROSS),
}
"""The twelve subsets of Table 1, by the names that commands take."""


def select(delta: Delta, *selectors: str) -> Delta:
    """Return the slice of `delta` that any of the selectors names.

    Args:
        delta: what to slice.
        selectors: names of `SUBSETS`, globs over parameter names (with `*`, `?` or `[`), or exact parameter names.

    Raises:
        SelectionError: a selector is unknown, or matches nothing in `delta`.
    """
    shapes = {name: parameter.shape for name, parameter in delta.metadata.parameters.items()}
    names = match(shapes, selectors)
    return restrict(delta, names, Record("slice", {"selectors": list(selectors)}))


def match(shapes: Mapping[str, tuple[int, ...]], selectors: Iterable[str]) -> list[str]:
    """Return the names that any of the selectors names, sorted, out of weight shapes by parameter name.

    Raises:
        SelectionError: a selector is unknown or matches nothing, or none was given.
    """
    chosen: set[str] = set()
    given = list(selectors)
    if not given:
        raise SelectionError("no selector was given", fix=f"known subsets are {', '.join(SUBSETS)}")
    for selector in given:
        chosen |= _match_one(shapes, selector)
    return sorted(chosen)


def _match_one(shapes: Mapping[str, tuple[int, ...]], selector: str) -> set[str]:
    if rule := SUBSETS.get(selector):
        found = {name for name, shape in shapes.items() if rule(name, shape)}
    elif any(char in selector for char in "*?["):
        found = {name for name in shapes if fnmatchcase(name, selector)}
    elif selector in shapes:
        return {selector}
    else:
        raise SelectionError(
            f"{selector!r}: is neither a subset nor a parameter here",
            fix=f"use a glob such as 'unet.mid_block.*', or one of {', '.join(SUBSETS)}",
        )
    if not found:
        raise SelectionError(
            f"{selector!r}: matches none of the {len(shapes)} parameters here", fix="see `svdiff info --layers`"
        )
    return found
