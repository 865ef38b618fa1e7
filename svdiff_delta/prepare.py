"""A base's weights made ready for δ: read, rounded, identified, with their basis; and checked against a delta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .base import Base
from .basis import READER_TOLERANCE, Basis, find_runs, matricize, unmatricize
from .cache import BasisCache
from .codec import Dtype
from .delta import Delta, Shift
from .errors import BaseMismatchError, TensorError
from .identity import choose_dtype, fingerprint, round_weight
from .parameter import Kind, Parameter

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all."""


class Weights(Protocol):
    """Anything that returns a base weight by parameter name: an opened base, or a live model."""

    def read(self, name: str) -> Tensor:
        """Return the values as they are, on the CPU."""


@dataclass(frozen=True)
class Prepared:
    """One weight of a base, rounded and identified.

    Attributes:
        parameter: what a delta file says about it.
        weight: its values, unrounded.
        rounded: its values in the basis dtype, as float32.
        basis: its basis; None for elementwise parameters.
    """

    parameter: Parameter
    weight: Tensor
    rounded: Tensor
    basis: Basis | None

    def delta_weight(self, shift: Tensor) -> Tensor:
        """Return ΔW in the weight's own shape for δ (size,) in float64, scaled and summed before (spec, section 6.6).

        Float32 for spectral parameters; for elementwise ones ΔW is δ itself, float64.
        """
        if self.basis is None:
            return shift.reshape(self.parameter.shape)
        axis = self.parameter.axis
        change = self.basis.delta_weight(matricize(self.rounded, axis), shift)
        return unmatricize(change, self.parameter.shape, axis)


def prepare(
    weights: Weights, name: str, kind: Kind, axis: int, cache: BasisCache, *, dtype: Dtype | None = None
) -> Prepared:
    """Read, round and identify one weight, and obtain its basis.

    Args:
        weights: where to read it.
        name: the parameter.
        kind: "spectral" or "elementwise".
        axis: the axis of output channels.
        cache: where bases are kept.
        dtype: the basis dtype that a file gives; None chooses it from the values, as a writer does.

    Raises:
        BaseError: the weight is missing, not floating-point, or not finite.
    """
    weight = weights.read(name)
    dtype = dtype or choose_dtype(weight, name)
    rounded = round_weight(weight, dtype)
    key = fingerprint(rounded, axis)
    if kind == "elementwise":
        return Prepared(Parameter(tuple(weight.shape), kind, axis, dtype, key), weight, rounded, None)
    basis = cache.obtain(key, rounded, axis)
    runs = find_runs(basis.sigma)
    parameter = Parameter(tuple(weight.shape), kind, axis, dtype, key, runs.tied, runs.null)
    return Prepared(parameter, weight, rounded, basis)


def fit(weights: Weights, name: str, delta: Delta, cache: BasisCache) -> Prepared:
    """Prepare the weight that a delta shifts, and check that it is the one the delta was made for.

    Raises:
        BaseMismatchError: another weight stands there.
        TensorError: δ differs where the singular values are tied, or is not 0 where they are null.
        BaseError: as `prepare`.
    """
    said = delta.metadata.parameters[name]
    weight = weights.read(name)
    if tuple(weight.shape) != said.shape:
        raise BaseMismatchError(
            f"{name}: the delta was made for a weight of shape {list(said.shape)}, the base has {list(weight.shape)}",
            fix="name the base that the delta was made for",
        )
    key = fingerprint(round_weight(weight, said.dtype), said.axis)
    if key != said.fingerprint:
        raise BaseMismatchError(
            f"{name}: the delta was made for another base (fingerprint {said.fingerprint}, here {key})",
            fix="name the base that the delta was made for",
        )
    prepared = prepare(weights, name, said.kind, said.axis, cache, dtype=said.dtype)
    if prepared.basis is not None:
        _check_projected(name, delta[name], prepared.basis)
    return prepared


def sigmas_of(base: Base, delta: Delta, cache: BasisCache | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the singular values (size,) that a delta shifts, by parameter name; its weights are checked on the way.

    Raises:
        BaseMismatchError, BaseError: as `fit`.
    """
    cache, found = cache or BasisCache(), {}
    for name in delta:
        basis = fit(base, name, delta, cache).basis
        if basis is not None:
            found[name] = basis.sigma.numpy()
    return found


def _check_projected(name: str, shift: Shift, basis: Basis) -> None:
    runs = find_runs(basis.sigma, READER_TOLERANCE)
    for first, last in runs.tied:
        if (shift[first : last + 1] != shift[first]).any():
            raise TensorError(f"{name}: δ differs within {first}-{last}, where the base's singular values are tied")
    if runs.null and shift[shift.size - runs.null :].any():
        raise TensorError(f"{name}: δ must be 0 on the {runs.null} singular values that are null in the base")
