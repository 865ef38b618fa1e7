"""All the bases of a base at once, and δ = 0 for it: where training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from .base import Base
from .cache import BasisCache
from .delta import Delta
from .kinds import base_kinds
from .metadata import Metadata
from .modelspec import known_modelspec
from .parameter import Kind, Parameter
from .prepare import Progress, prepare
from .selectors import match


def build_basis(
    base: Base, *selectors: str, cache: BasisCache | None = None, progress: Progress | None = None
) -> dict[str, Parameter]:
    """Compute and keep the bases of a base's weights, largest first.

    Args:
        base: an opened base.
        selectors: which parameters, as `select` takes them; all that can be shifted if none is given.
        cache: where to keep them; the default cache if not given.
        progress: called after each weight with the numbers of weights' elements done and in all.

    Returns:
        What a delta file says about each parameter, by sorted name.

    Raises:
        SelectionError: a selector is unknown or matches nothing.
        BaseError: a weight cannot be used.
    """
    cache = cache or BasisCache()
    kinds = base_kinds(base)
    if selectors:  # an embedding counts where its own name is given
        kinds |= {name: kind for name, kind in base_kinds(base, on_request=True).items() if name in selectors}
    sizes = {name: prod(base.shape(name)) for name in chosen_names(base, kinds, selectors)}
    done, total, found = 0, sum(sizes.values()), {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = prepare(base, name, *kinds[name], cache).parameter
        done += sizes[name]
        if progress is not None:
            progress(done, total)
    return dict(sorted(found.items()))


def chosen_names(base: Base, kinds: Mapping[str, tuple[Kind, int]], selectors: Sequence[str]) -> list[str]:
    """Return the names among `kinds` that any selector names; all if there is no selector."""
    if not selectors:
        return sorted(kinds)
    shapes, info = {name: base.shape(name) for name in kinds}, base.info
    return match(shapes, selectors, sample_size=info.sample_size, layout=info.attentions)


def zero_delta(base: Base, *selectors: str, cache: BasisCache | None = None, progress: Progress | None = None) -> Delta:
    """Return δ = 0 for a base's weights: where training starts. Arguments and errors are those of `build_basis`."""
    parameters = build_basis(base, *selectors, cache=cache, progress=progress)
    used = {name.partition(".")[0] for name in parameters}
    info = base.info
    classes = {name: cls for name, cls in info.components.items() if name in used}
    metadata = Metadata(replace(info, components=classes), parameters, modelspec=known_modelspec(classes))
    return Delta({name: np.zeros(parameter.size) for name, parameter in parameters.items()}, metadata)
