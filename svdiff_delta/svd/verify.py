"""Whether a base is the one a delta was made for: all parameters at once, and which revision would be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import prod
from typing import Final

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.layout import variants
from svdiff_delta.errors import BaseError, BaseMismatchError, DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.hub_client.blobs import blob_name, is_sound
from svdiff_delta.hub_client.names import EMBEDDED
from svdiff_delta.hub_client.reference import cached_revisions, parse_reference

from .build import cost, share_out
from .cache import BasisCache
from .prepare import Prepared, Progress, Weights, prepare_weight, verify_and_prepare, weight_mismatch

SHOWN: Final = 3
"""How many parameters an error names."""


def verify_base(weights: Weights, delta: Delta, *, progress: Progress | None = None) -> None:
    """Check that every weight that a delta shifts is the one it was made for.

    Args:
        weights: an opened base, or a live model's weights.
        delta: the delta.
        progress: called with the numbers of parameters checked and in all.

    Raises:
        BaseMismatchError: weights have another shape or other values. The message says which, how many, and which
            revision in the local Hub cache fits.
        BaseError: weights are missing, and all others fit; or one cannot be used.
    """
    missing, different = {}, {}
    for count, (name, said) in enumerate(delta.metadata.parameters.items(), 1):
        if why := _absence(weights, name):
            missing[name] = why
        elif why := weight_mismatch(weights, name, said):
            different[name] = why
        if progress is not None:
            progress(count, len(delta))
    if not missing and not different:
        return
    kind = BaseMismatchError if different else BaseError
    found = different | missing
    name, why = next(iter(found.items()))
    message = f"{name}: {why}"
    if len(found) > 1:
        more = ", …" if len(found) > SHOWN else ""
        what = "do not fit" if different else "are not there"
        message += f"; {len(found)} of {len(delta)} parameters {what}: {', '.join(list(found)[:SHOWN])}{more}"
    raise kind(message, fix=_damage(weights, different) or _advice(weights, delta))


def prepare_base(
    weights: Weights, deltas: Sequence[Delta], cache: BasisCache, progress: Progress | None = None
) -> None:
    """Check every delta against a base, and see to it that every basis is in the cache: several at once.

    Args:
        weights: an opened base, or a live model's weights.
        deltas: the deltas.
        cache: where bases are kept.
        progress: called with the work done and in all, once the identity of all weights is known.

    Raises:
        BaseMismatchError, BaseError: as `verify_base`.
        TensorError: a δ is not projected on the runs of its basis.
    """
    for delta in deltas:
        verify_base(weights, delta)
    places = {f"{name} {index}": (name, delta) for index, delta in enumerate(deltas) for name in delta}

    def work(key: str, wait: bool) -> None:
        name, delta = places[key]
        verify_and_prepare(weights, name, delta, cache if wait else cache.impatient())

    said = {key: delta.metadata.parameters[name] for key, (name, delta) in places.items()}
    share_out({key: cost(item.shape, item.kind, item.axis) for key, item in said.items()}, work, progress)


def prepare_verified(weights: Weights, name: str, delta: Delta, cache: BasisCache) -> Prepared:
    """Prepare a weight that `prepare_base` has found to be the delta's; errors are those of `prepare_weight`."""
    said = delta.metadata.parameters[name]
    return prepare_weight(weights, name, said.kind, said.axis, cache, dtype=said.dtype)


def find_matching_base(weights: Weights, delta: Delta) -> str | None:
    """Return what to name as BASE instead: a revision in the local Hub cache that the delta was made for.

    The repositories looked at are the base's own, and the one that the delta names. The smallest weights are compared
    first, so a revision that does not fit costs little.
    """
    known = weights.repository if isinstance(weights, Base) else None
    names = [name for name in (known, delta.metadata.base.repository) if name]
    for repository in dict.fromkeys(names):
        if parse_reference(repository) is None:
            continue
        for commit, folder in cached_revisions(repository).items():
            for variant in (None, *variants(path.name for path in folder.rglob("*"))):
                if _fits(f"hf://{repository}@{commit}", variant, delta):
                    return f"{repository}@{commit}" + (f" with the variant {variant}" if variant else "")
    return None


def _absence(weights: Weights, name: str) -> str | None:
    """Return why a base has no weight of a name; None if it has one."""
    if isinstance(weights, Base):
        try:
            weights.locate(name)
        except BaseError as error:
            return error.message.removeprefix(f"{name}: ")
    return None


def _fits(reference: str, variant: str | None, delta: Delta) -> bool:
    parameters = delta.metadata.parameters
    slots = {name.partition(".")[0] for name in parameters}
    with suppress(DeltaError):
        base = open_base(reference, component=slots.pop() if len(slots) == 1 else None, variant=variant, fetch=False)
        names = sorted(parameters, key=lambda name: (prod(parameters[name].shape), name))
        return all(weight_mismatch(base, name, parameters[name]) is None for name in names)
    return False


def _damage(weights: Weights, names: Iterable[str]) -> str | None:
    """Return what mends a file of a Hub cache that does not hold what the Hub said; None if no weight stands in one."""
    if not isinstance(weights, Base):
        return None
    for path in sorted({weights.locate(name)[2] for name in names}):
        blob = blob_name(path)
        with suppress(OSError):
            if blob is not None and not is_sound(path, blob):
                return f"{path.resolve()} is damaged, by the hash that is its name: remove it, and fetch the base again"
    return None


def _advice(weights: Weights, delta: Delta) -> str:
    if fitting := find_matching_base(weights, delta):
        return f"{fitting} is in the local Hub cache and fits"
    said = delta.metadata.base
    if not isinstance(weights, Base):
        return "name its base with `base=` if the model was cast or fused, else load the model the delta was made for"
    if said.repository == weights.repository == EMBEDDED:  # it has no revisions, but versions ship different ones
        return (
            "the embedded base changed in this version: train the delta anew, or use it with the version of "
            "svdiff-delta that made it"
        )
    if said.repository and weights.repository != said.repository:
        made_for = said.repository + (f"@{said.revision}" if said.revision else "")
        return f"name the base that the delta was made for, by its own words {made_for}"
    return "name the base that the delta was made for"
