"""Compute all decompositions of a base at once, and make a delta of zeros for it, where training starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from svdiff_delta._util.device_errors import telling
from svdiff_delta.base_model.devices import on_host
from svdiff_delta.base_model.opened import Base
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import BaseError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.format.modelspec import known_modelspec
from svdiff_delta.format.parameter import Kind, Parameter

from .cache import BasisCache
from .prepare import Progress, prepare_weight
from .side_by_side import workers_for
from .together import Wanted, run_prepared


def build_basis(
    base: Base,
    *selectors: str,
    allow_missing: bool = False,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Parameter]:
    """Compute and keep the bases of a base's weights, several at once, largest first.

    What the cache holds is not computed again. Processes that run this at the same time with one cache folder, such as
    those of `torchrun`, share the weights out: each passes over what another one computes.

    Args:
        base: an opened base.
        selectors: which parameters, as `select` takes them; all that can be shifted if none is given.
        allow_missing: whether weights that the files hold under other names than the model's class, and that can be
            shifted only after it is saved again, may be left out.
        cache: where to keep them; the default cache if not given.
        progress: called after each weight with the work done and in all, in multiplications.
        workers: how many to compute at once; by default as many as torch has threads, and on a GPU as many as its free
            memory has room for, 2 to 8, each in a stream of its own. There, up to 16 small weights of one shape count
            as one.

    Returns:
        What a delta file says about each parameter, by sorted name.

    Raises:
        SelectionError: a selector is unknown or matches nothing.
        BaseError: a weight cannot be used, or has no place in the model's class; memory is not enough, or the device
            has failed.
    """
    kinds = choose_kinds(base, selectors, allow_missing=allow_missing)
    return prepare_all(base, kinds, cache or BasisCache(), progress=progress, workers=workers)


@telling(BaseError, "while computing bases", "lower `workers`, or select a part of the model")
@on_host
def prepare_all(
    base: Base,
    kinds: Mapping[str, tuple[Kind, int]],
    cache: BasisCache,
    *,
    dtypes: Mapping[str, Dtype | None] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Parameter]:
    """Identify weights and see to it that every basis is in the cache, several at once, largest first.

    Args:
        base: an opened base.
        kinds: kind and axis of each weight.
        cache: where bases are kept.
        dtypes: the basis dtype of a weight, where a file gives it.
        progress: called after each weight with the work done and in all, in multiplications.
        workers: how many at once, as in `build_basis`.

    Returns:
        What a delta file says about each parameter, by sorted name.

    Raises:
        BaseError: a weight cannot be used, memory is not enough, or the device has failed.
    """
    given = dtypes or {}
    wanted = {name: Wanted(base.shape(name), *kind, given.get(name)) for name, kind in kinds.items()}

    def work(name: str, wait: bool) -> Parameter:
        cache_ = cache if wait else cache.impatient()
        return prepare_weight(base, name, *kinds[name], cache_, dtype=given.get(name)).parameter

    return run_prepared(base, wanted, cache, work, progress, workers or workers_for(cache))


def zero_delta(
    base: Base,
    *selectors: str,
    allow_missing: bool = False,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
) -> Delta:
    """Return δ = 0 for a base's weights: where training starts. Arguments and errors are those of `build_basis`."""
    parameters = build_basis(base, *selectors, allow_missing=allow_missing, cache=cache, progress=progress)
    used = {name.partition(".")[0] for name in parameters}
    info = base.info
    classes = {name: cls for name, cls in info.components.items() if name in used}
    metadata = Metadata(replace(info, components=classes), parameters, modelspec=known_modelspec(classes))
    return Delta({name: np.zeros(parameter.size) for name, parameter in parameters.items()}, metadata)
