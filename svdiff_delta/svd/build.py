"""Compute all decompositions of a base at once, and make a delta of zeros for it, where training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch

from svdiff_delta._util.parallel import Threads
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.devices import on_host
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.format.modelspec import known_modelspec
from svdiff_delta.format.parameter import Kind, Parameter

from .cache import BasisCache, BusyError
from .prepare import Progress, prepare_weight

T = TypeVar("T")


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
        workers: how many to compute at once; by default as many as torch has threads, and 2 on a GPU, of which one
            reads while the other computes.

    Returns:
        What a delta file says about each parameter, by sorted name.

    Raises:
        SelectionError: a selector is unknown or matches nothing.
        BaseError: a weight cannot be used, or has no place in the model's class.
    """
    kinds = choose_kinds(base, selectors, allow_missing=allow_missing)
    return prepare_all(base, kinds, cache or BasisCache(), progress=progress, workers=workers)


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
        BaseError: a weight cannot be used.
    """
    costs = {name: cost(base.shape(name), *kind) for name, kind in kinds.items()}
    given = dtypes or {}

    def work(name: str, wait: bool) -> Parameter:
        cache_ = cache if wait else cache.impatient()
        return prepare_weight(base, name, *kinds[name], cache_, dtype=given.get(name)).parameter

    return run_costliest_first(costs, work, progress, workers or (None if cache.device.type == "cpu" else 2))


def cost(shape: Sequence[int], kind: Kind, axis: int) -> int:
    """Return about how many multiplications a basis takes: K²L for products, and ten K³ for eigenvectors."""
    rows, count = shape[axis] if shape else 1, prod(shape)
    if kind == "elementwise":
        return count
    short = min(rows, count // max(1, rows))
    return short * count + 10 * short**3


def run_costliest_first(
    costs: Mapping[str, int],
    work: Callable[[str, bool], T],
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, T]:
    """Return the results of `work(name, wait)` by sorted name, done in threads, the most costly first.

    Where it raises `BusyError` it is done again in the end, with `wait` true. The first error stops all. There are as
    many workers as torch has threads, unless their number is given.
    """
    order = sorted(costs, key=lambda name: (-costs[name], name))
    done, total, found = 0, sum(costs.values()), {}
    threads, ended = torch.get_num_threads(), SimpleQueue[str]()

    def alone(name: str, wait: bool) -> T:
        torch.set_num_threads(1)
        try:
            return work(name, wait)
        finally:
            ended.put(name)

    try:
        with Threads[T](min(workers or threads, len(order))) as pool:
            for wait in (False, True):
                tasks = {name: pool.submit(partial(alone, name, wait)) for name in order}
                order = []
                for _ in tasks:
                    name = ended.get()
                    try:
                        found[name] = tasks[name].result()
                    except BusyError:
                        order.append(name)
                        continue
                    done += costs[name]
                    if progress is not None:
                        progress(done, total)
    finally:
        torch.set_num_threads(threads)  # for threads that torch has not met yet
    return dict(sorted(found.items()))


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
