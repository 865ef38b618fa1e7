"""Slices of a delta: the part that selectors name (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.lineage import Record
from svdiff_delta.format.parameter import Table
from svdiff_delta.selectors.match import match

from .arithmetic import restrict


def select(delta: Delta, *selectors: str, sample_size: int | None = None) -> Delta:
    """Return the slice of `delta` that any of the selectors names, without what `!SELECTOR` names.

    Args:
        delta: what to slice.
        selectors: names of `SUBSETS`, blocks such as `down.1`, addresses such as `(16,down,1)-(8,down,0)`, globs over
            parameter names (with `*`, `?` or `[`), or exact parameter names, each with or without a `!` in front. If
            all have one, the slice is all the rest.
        sample_size: the width of the latents that addresses count from; what the file says if not given.

    Raises:
        InputError: `sample_size` is less than 1.
        SelectionError: a selector is unknown or matches nothing, or nothing is left.
    """
    shapes = {name: parameter.shape for name, parameter in delta.metadata.parameters.items()}
    size = sample_size if sample_size is not None else delta.metadata.base.sample_size
    names = match(shapes, selectors, sample_size=size, layout=delta.metadata.base.attentions)
    given = {} if sample_size is None else {"sample_size": sample_size}
    return restrict(delta, names, Record("slice", {"selectors": list(selectors), **given}))


def part_of(delta: Delta, names: Container[str]) -> Delta:
    """Return a delta without the parameters that are not named; itself if all are.

    It says of itself what the whole one does: for who computes with it at once, and writes nothing.
    """
    kept = {name: parameter for name, parameter in delta.metadata.parameters.items() if name in names}
    if len(kept) == len(delta):
        return delta
    stored = {name: delta.stored[name] for name in kept}
    return Delta.from_stored(stored, replace(delta.metadata, parameters=Table(kept)))
