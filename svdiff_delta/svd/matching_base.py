"""Find what mends a base that is not a delta's: another revision in the local Hub cache, or a damaged file."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from math import prod

from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.layout import variants
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseMismatchError, DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.hub_client.blobs import blob_name, is_sound
from svdiff_delta.hub_client.names import EMBEDDED
from svdiff_delta.hub_client.reference import cached_revisions, parse_reference

from .prepare import Weights, weight_mismatch
from .side_by_side import run_costliest_first


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


def _fits(reference: str, variant: str | None, delta: Delta) -> bool:
    parameters = delta.metadata.parameters
    slots = {name.partition(".")[0] for name in parameters}
    with suppress(DeltaError):
        base = open_base(reference, component=slots.pop() if len(slots) == 1 else None, variant=variant, fetch=False)

        def check(name: str, _: bool) -> None:
            if why := weight_mismatch(base, name, parameters[name]):
                raise BaseMismatchError(f"{name}: {why}")

        run_costliest_first({name: -prod(said.shape) for name, said in parameters.items()}, check)
        return True
    return False


def find_damage(weights: Weights, names: Iterable[str]) -> str | None:
    """Return what mends a file of a Hub cache that does not hold what the Hub said; None if no weight stands in one."""
    if not isinstance(weights, Base):
        return None
    for path in sorted({weights.locate(name)[2] for name in names}):
        blob = blob_name(path)
        with suppress(OSError):
            if blob is not None and not is_sound(path, blob):
                return f"{path.resolve()} is damaged, by the hash that is its name: remove it, and fetch the base again"
    return None


def advise(weights: Weights, delta: Delta) -> str:
    """Return what mends a base that is not the one a delta was made for."""
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
