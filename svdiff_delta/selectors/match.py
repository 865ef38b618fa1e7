"""Layer selectors: subsets, blocks, kinds, addresses, globs, names, and what is left of them (spec, section 7.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from svdiff_delta._util.patterns import check_pattern, glob
from svdiff_delta.errors import InputError, SelectionError

from .addresses import Layout, is_address, select_addresses
from .subsets import SPELLED, subset

COMPLEMENT: Final = "!"
"""In front of a selector: all but what it names."""


def match(
    shapes: Mapping[str, tuple[int, ...]],
    selectors: Iterable[str],
    *,
    sample_size: int | None = None,
    layout: Layout | None = None,
) -> list[str]:
    """Return the names that any of the selectors names, sorted, out of weight shapes by parameter name.

    Args:
        shapes: the weights' shapes by parameter name.
        selectors: what to take, and behind a `!` what to leave.
        sample_size: the width of the latents that addresses count from.
        layout: where the UNet has cross-attention; found from the names if not given.

    Raises:
        InputError: `sample_size` is less than 1.
        SelectionError: a selector is unknown or matches nothing, none was given, or nothing is left.
    """
    if sample_size is not None and sample_size < 1:
        raise InputError(f"the sample size must be at least 1, is {sample_size}")
    given = list(selectors)
    if not given:
        raise SelectionError("no selector was given", fix=f"name {SPELLED}")
    wanted = [selector for selector in given if not selector.startswith(COMPLEMENT)]
    unwanted = [selector.removeprefix(COMPLEMENT) for selector in given if selector.startswith(COMPLEMENT)]
    chosen = set() if wanted else set(shapes)
    for selector in wanted:
        chosen |= _match_one(shapes, selector, sample_size, layout)
    for selector in unwanted:
        chosen -= _match_one(shapes, selector, sample_size, layout)
    if not chosen:
        raise SelectionError(f"nothing is left of {len(shapes)} parameters", fix="remove a selector that begins with !")
    return sorted(chosen)


def _match_one(
    shapes: Mapping[str, tuple[int, ...]], selector: str, sample_size: int | None, layout: Layout | None
) -> set[str]:
    check_pattern(selector, SelectionError)
    if selector in shapes:
        return {selector}
    if rule := subset(selector, shapes.keys()):
        found = {name for name, shape in shapes.items() if rule(name, shape)}
    elif is_address(selector):
        if sample_size is None:
            raise SelectionError(
                f"{selector}: the file does not say how wide the latents are that addresses count from",
                fix="give `sample_size` (64 for SD 1.5, 128 for SDXL)",
            )
        found = select_addresses(shapes, selector, sample_size, layout)
    elif any(char in selector for char in "*?["):
        found = set(filter(glob(selector, SelectionError), shapes))
    else:
        raise SelectionError(
            f"{selector!r}: is neither a subset nor a parameter here",
            fix=f"use a glob such as 'unet.mid_block.*', or {SPELLED}",
        )
    if not found:
        raise SelectionError(
            f"{selector!r}: matches none of the {len(shapes)} parameters here", fix="see `list(delta)`"
        )
    return found
