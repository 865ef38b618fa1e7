"""Prepare a base's weights for δ: fingerprint them, get their decompositions, and check them against a delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseMismatchError, TensorError
from svdiff_delta.format.delta import Delta, Shift, differing_run, shifts_null
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.parameter import Kind, Parameter

from .cache import BasisCache
from .decomposition import READER_TOLERANCE, Basis, Runs, find_runs
from .fingerprint import fingerprint_stored, round_weight
from .fingerprint_cache import Known, recall, remember
from .gpu_basis import round_for
from .side_by_side import Progress as Progress
from .side_by_side import cost, map_weights, workers_for

CPU: Final = torch.device("cpu")


class Weights(Protocol):
    """Anything that returns a base weight by parameter name: an opened base, or a live model."""

    def read(self, name: str) -> Tensor:
        """Return the values as they are, on the CPU."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """One weight of a base, identified. It holds no values: they are read anew whenever they are asked for.

    Attributes:
        parameter: what a delta file says about it.
        basis: its basis; None for elementwise parameters.
        source: reads its values.
        device: where `shifted_parts` is to compute; values are read to the CPU.
    """

    parameter: Parameter
    basis: Basis | None
    source: Callable[[], Tensor]
    device: torch.device = CPU

    @property
    def weight(self) -> Tensor:
        """Its values, unrounded, read now."""
        return self.source()

    @property
    def rounded(self) -> Tensor:
        """Its values in the basis dtype, as float32, read and rounded now."""
        return round_weight(self.source(), self.parameter.dtype)


def prepare_weight(
    weights: Weights,
    name: str,
    kind: Kind,
    axis: int,
    cache: BasisCache,
    *,
    dtype: Dtype | None = None,
    known: Known | None = None,
    hashed: bool = False,
) -> Prepared:
    """Identify one weight, and obtain its basis. What is remembered and kept is neither read nor hashed again.

    Args:
        weights: where to read it.
        name: the parameter.
        kind: "spectral" or "elementwise".
        axis: the axis of output channels.
        cache: where bases are kept.
        dtype: the basis dtype that a file gives; None chooses it from the values, as a writer does.
        known: what the weight was identified as just now, if it was.
        hashed: whether that was by its values, and not by what is remembered of its file.

    Raises:
        BaseError: the weight is missing, not floating-point, or not finite.
    """
    known = known or recall_weight(weights, name, axis, dtype)
    if known is None:
        known, hashed = fingerprint_weight(weights, name, axis, dtype), True
    basis = cache.get(known.fingerprint) if kind == "spectral" else None
    if kind == "spectral" and (basis is None or (cache.two_sided and not _is_whole(basis))):
        if not hashed:  # nothing is computed under a fingerprint that is not the values' own
            known = fingerprint_weight(weights, name, axis, dtype)
        rounded = round_for(weights.read(name), known.dtype, cache.device)
        basis = cache.obtain(known.fingerprint, rounded, axis)
    runs = find_runs(basis.sigma) if basis else Runs((), 0)
    parameter = Parameter(known.shape, kind, axis, known.dtype, known.fingerprint, runs.tied, runs.null)
    return Prepared(parameter, basis, partial(weights.read, name))


def identify_weight(weights: Weights, name: str, axis: int, dtype: Dtype | None = None) -> Known:
    """Return basis dtype, fingerprint and shape of one weight, as remembered or else from its values.

    Args:
        weights: where to read it.
        name: the parameter.
        axis: the axis of output channels.
        dtype: the basis dtype that a file gives; None chooses it from the values, as a writer does.

    Raises:
        BaseError: the weight is missing, not floating-point, or not finite.
    """
    return recall_weight(weights, name, axis, dtype) or fingerprint_weight(weights, name, axis, dtype)


def recall_weight(weights: Weights, name: str, axis: int, dtype: Dtype | None) -> Known | None:
    """Return what is remembered of a file's weight; nothing is of a live model's."""
    return recall(weights, name, axis, dtype) if isinstance(weights, Base) else None


def fingerprint_weight(weights: Weights, name: str, axis: int, dtype: Dtype | None) -> Known:
    """Read a weight, fingerprint its values and remember that; arguments and errors are those of `identify_weight`."""
    if isinstance(weights, Base):
        weights.check_format(name)
    weight = weights.read(name)
    known = Known(*fingerprint_stored(weight, name, axis, dtype), tuple(weight.shape))
    if isinstance(weights, Base):
        remember(weights, name, axis, dtype, known)
    return known


def weight_mismatch(weights: Weights, name: str, said: Parameter) -> str | None:
    """Return what tells a weight from the one that a delta was made for; None if it is that one.

    Raises:
        BaseError: the weight is missing, not floating-point, or not finite.
    """
    found = _compared(weights, name, said)
    return found if isinstance(found, str) else None


def _compared(weights: Weights, name: str, said: Parameter) -> Known | str:
    """Return what a weight is identified as; if it is not the one that a delta was made for, what tells it."""
    if why := shape_mismatch(weights, name, said.shape):
        return why
    known = identify_weight(weights, name, said.axis, said.dtype)
    return fingerprint_mismatch(known, said) or known


def shape_mismatch(weights: Weights, name: str, shape: tuple[int, ...]) -> str:
    """Return what tells a weight's shape from the one that a delta was made for; empty if nothing does."""
    found = weights.shape(name) if isinstance(weights, Base) else tuple(weights.read(name).shape)
    if found == shape:
        return ""
    return f"the delta was made for a weight of shape {list(shape)}, the base has {list(found)}"


def fingerprint_mismatch(known: Known, said: Parameter) -> str:
    """Return what tells a weight's fingerprint from the one that a delta was made for; empty if nothing does."""
    if known.fingerprint == said.fingerprint:
        return ""
    return f"the delta was made for another base (fingerprint {said.fingerprint}, here {known.fingerprint})"


def verify_weight(weights: Weights, name: str, said: Parameter) -> Known:
    """Check that a weight is the one that a delta says it was made for, and return what it is identified as.

    Raises:
        BaseMismatchError: another weight stands there.
        BaseError: it is missing, or cannot be used.
    """
    found = _compared(weights, name, said)
    if isinstance(found, str):
        raise BaseMismatchError(f"{name}: {found}", fix="name the base that the delta was made for")
    return found


def verify_and_prepare(weights: Weights, name: str, delta: Delta, cache: BasisCache) -> Prepared:
    """Prepare the weight that a delta shifts, and check that it is the one the delta was made for.

    Raises:
        BaseMismatchError: another weight stands there.
        TensorError: δ differs where the singular values are tied, or is not 0 where they are null.
        BaseError: as `prepare_weight`.
    """
    said = delta.metadata.parameters[name]
    prepared = prepare_known(weights, name, said, cache, verify_weight(weights, name, said))
    check_projected(name, [delta], prepared)
    return prepared


def prepare_known(
    weights: Weights, name: str, said: Parameter, cache: BasisCache, known: Known, *, hashed: bool = False
) -> Prepared:
    """Prepare a weight that was found to be the one that a delta shifts.

    Args:
        weights: where to read it.
        name: the parameter.
        said: what the delta says of it.
        cache: where bases are kept.
        known: what the weight was identified as.
        hashed: whether that was by its values just now.

    Raises:
        BaseMismatchError: its file has changed since.
        BaseError: as `prepare_weight`.
    """
    prepared = prepare_weight(weights, name, said.kind, said.axis, cache, dtype=said.dtype, known=known, hashed=hashed)
    if prepared.parameter.fingerprint != said.fingerprint:  # the file was changed under a remembered fingerprint
        raise BaseMismatchError(f"{name}: the base's file has changed", fix="name the base the delta was made for")
    return prepared


def check_projected(name: str, deltas: Sequence[Delta], prepared: Prepared) -> None:
    """Check that deltas are projected on the runs of a weight's basis, at a reader's tolerance.

    Raises:
        TensorError: a δ differs where the singular values are tied, or is not 0 where they are null.
    """
    if prepared.basis is not None:
        runs = find_runs(prepared.basis.sigma, READER_TOLERANCE)
        for delta in deltas:
            check_runs(name, delta[name], runs)


def sigmas_of(base: Base, delta: Delta, cache: BasisCache | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the singular values (size,) that a delta shifts, by parameter name; its weights are checked on the way.

    Raises:
        BaseMismatchError, BaseError: as `verify_and_prepare`.
    """
    cache, said = cache or BasisCache(), delta.metadata.parameters

    def sigma(name: str) -> NDArray[np.float64]:
        basis = verify_and_prepare(base, name, delta, cache).basis
        return np.empty(0) if basis is None else basis.sigma.numpy()

    costs = {name: cost(said[name].shape, said[name].kind, said[name].axis) for name in delta}
    found = map_weights(costs, sigma, workers=workers_for(cache))
    return {name: values for name, values in found.items() if said[name].kind == "spectral"}


def check_runs(name: str, shift: Shift, runs: Runs) -> None:
    """Check that δ (size,) is equal where the singular values here are tied, and 0 where they are null (spec, 6.4).

    Raises:
        TensorError: it is not.
    """
    if run := differing_run(shift, runs.tied):
        raise TensorError(f"{name}: δ differs within {run[0]}-{run[1]}, where the base's singular values are tied")
    if shifts_null(shift, runs.null):
        raise TensorError(f"{name}: δ must be 0 on the {runs.null} singular values that are null in the base")


def _is_whole(basis: Basis) -> bool:
    """Tell whether both factors are kept whole."""
    return basis.tail.shape[0] + basis.null == basis.sigma.numel()
