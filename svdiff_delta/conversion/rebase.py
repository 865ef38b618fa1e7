"""Rebase a delta: find the δ on another base whose change of the weights is nearest (spec, section 7.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.devices import on_host
from svdiff_delta.base_model.matching import named_like
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError, InputError
from svdiff_delta.format.delta import Delta, check_range
from svdiff_delta.format.dtypes import Stored, StoredDtype, encode
from svdiff_delta.format.lineage import Record
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.format.modelspec import known_modelspec
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import combine_metadata
from svdiff_delta.svd.build import prepare_all
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.energy import Energy
from svdiff_delta.svd.prepare import Progress, prepare_weight
from svdiff_delta.svd.projection import find_same_weights, project_change, squared_norm
from svdiff_delta.svd.shifted_weight import delta_weight
from svdiff_delta.svd.verify import VerifiedBase, verify_base

from .result import Conversion, check_arguments, check_captured, check_left_out, recorded_share


@on_host
def rebase(
    delta: Delta,
    old_base: Base,
    new_base: Base,
    *,
    dtype: StoredDtype = "F32",
    min_energy: float = 0.0,
    allow_unmatched: bool = False,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Carry a delta over to another base: δ′ᵢ = u′ᵢᵀ (U Δσ Vᵀ) v′ᵢ on the new base's singular vectors.

    Δσ = max(δ, −σ) of the old base, and δ′ is clipped at −σ′. Where both bases have the same weight, by fingerprint,
    δ is carried over bit for bit; so is that of norm weights, on whose elements δ stands.

    Args:
        delta: a delta of the old base.
        old_base: the base that it was made for.
        new_base: the base that the result is for.
        dtype: number format of shifts that are calculated anew; those that are carried over keep theirs.
        min_energy: the least share of the whole change, in [0, 1], that must be captured.
        allow_unmatched: whether parameters that the new base lacks, or has in another shape, may be left out.
        cache: where bases are kept; the default cache if not given.
        progress: called with how much is done and how much there is in all, of each stage: the bases of the old base,
            those of the new one, and the elements of weights.

    Returns:
        The delta, with the energy of each parameter.

    Raises:
        InputError: a least energy out of range or not reached, or parameters that cannot be carried over.
        BaseMismatchError: the delta was not made for the old base.
        BaseError: a weight of a base cannot be used.
        TensorError: a shift is too large for `dtype`.
    """
    check_arguments(min_energy, dtype)
    old_base, new_base = named_like(old_base, delta), named_like(new_base, delta)
    work = _Work(delta, verify_base(old_base, [delta]), new_base, cache or BasisCache(), dtype)
    left_out = {name: reason for name in delta if (reason := work.obstacle(name))}
    check_left_out(left_out, "the delta", allow_unmatched=allow_unmatched)
    names = [name for name in delta if name not in left_out]
    if not names:
        raise InputError("the new base has none of the delta's parameters", fix="name a base of the same kind")
    work.compute_bases(names, progress)
    sizes = {name: prod(delta.metadata.parameters[name].shape) for name in names}
    done, total = 0, sum(sizes.values())
    for name in names:
        work.carry(name)
        done += sizes[name]
        if progress is not None:
            progress(done, total)
    check_captured(work.layers.values(), min_energy)
    return Conversion(work.result(len(left_out)), work.layers, left_out=left_out, unchanged=work.unchanged)


@dataclass
class _Work:
    """A rebase in progress, one parameter at a time."""

    delta: Delta
    old: VerifiedBase
    new: Base
    cache: BasisCache
    dtype: StoredDtype
    stored: dict[str, Stored] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    layers: dict[str, Energy] = field(default_factory=dict)
    unchanged: int = 0
    same: set[str] = field(default_factory=set)

    def obstacle(self, name: str) -> str:
        """Return why a parameter cannot be carried over; empty if it can."""
        shape = self.delta.metadata.parameters[name].shape
        try:
            found = self.new.shape(name)
        except BaseError:
            return "is not in the new base"
        return "" if found == shape else f"has shape {list(shape)}, in the new base {list(found)}"

    def compute_bases(self, names: Sequence[str], progress: Progress | None) -> None:
        """See to it that every basis is in the cache, several at once."""
        self.old.prepare_all(self.cache, progress)
        said = self.delta.metadata.parameters
        self.same = find_same_weights(self.new, {name: said[name] for name in names})
        fresh = [name for name in names if name not in self.same]
        prepare_all(
            self.new, {name: (said[name].kind, said[name].axis) for name in fresh}, self.cache, progress=progress
        )

    def carry(self, name: str) -> None:
        """Carry one parameter over."""
        said, old = self.delta.metadata.parameters[name], self.old.prepare(name, self.cache)
        change = delta_weight(old, torch.from_numpy(self.delta[name].astype(np.float64)))
        if name in self.same:
            energy = squared_norm(change)
            self._keep(name, said, Energy(energy, energy))
            return
        prepared = prepare_weight(self.new, name, said.kind, said.axis, self.cache)
        shift, found = project_change(prepared, change, name=name)
        if said.kind == "elementwise":
            self._keep(name, prepared.parameter, found)
            return
        check_range(name, shift, self.dtype)
        self.stored[name], self.parameters[name] = encode(shift, self.dtype), prepared.parameter
        self.layers[name] = found

    def _keep(self, name: str, parameter: Parameter, energy: Energy) -> None:
        """Carry the values over as they are stored."""
        self.stored[name], self.parameters[name] = self.delta.stored[name], parameter
        self.layers[name] = energy
        self.unchanged += 1

    def result(self, left_out: int) -> Delta:
        """Return the delta for the new base, with the rebase in its lineage."""
        arguments: dict[str, JSON] = {"captured": recorded_share(self.layers.values())}
        told = self.delta.metadata.base
        if told.repository is not None:
            arguments["old_base"] = {"repository": told.repository}
            if told.revision is not None:
                arguments["old_base"]["revision"] = told.revision
        if left_out:
            arguments["left_out"] = left_out
        if self.dtype != "F32":
            arguments["dtype"] = self.dtype
        combined = combine_metadata([self.delta], self.parameters, Record("rebase", arguments))
        info, used = self.new.info, {name.partition(".")[0] for name in self.parameters}
        classes = {name: info.components[name] or told.components[name] for name in sorted(used)}
        base = replace(info, components=classes, extra=told.extra)
        return Delta.from_stored(self.stored, _with_architecture(replace(combined, base=base)))


def _with_architecture(metadata: Metadata) -> Metadata:
    """Let model browsers show the new base's class, where they were shown one."""
    known = known_modelspec(metadata.base.components)
    if "architecture" not in metadata.modelspec or "architecture" not in known:
        return metadata
    return metadata.with_modelspec("architecture", known["architecture"])
