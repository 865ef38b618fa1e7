"""Project the change of a weight on the base's singular vectors, which gives δ (spec, sections 7.8 and 7.11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, prod
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseMismatchError, TensorError
from svdiff_delta.format.delta import project
from svdiff_delta.format.parameter import Parameter

from .decomposition import Basis, matricize
from .energy import Energy
from .prepare import Prepared, weight_mismatch
from .side_by_side import map_weights

PIECE: Final = 1 << 22
"""Numbers of a weight that are float64 at a time: 32 MiB."""


def coordinates(basis: Basis, matrix: Tensor, change: Tensor) -> Tensor:
    """Return uᵢᵀ ΔW vᵢ for every singular value, (K,) float64; 0 where it is null.

    The stored factor is float32, all products and sums are float64: on all spectra tried the result errs by at most
    3e-8 of ‖ΔW‖ (section 7.8 asks for 1e-6). With `vᵢ = Wᵀuᵢ/σᵢ` it is the diagonal of `Uᵀ(ΔW Wᵀ)U`, divided by σ:
    one product with the long side, whose singular vectors are never formed.

    Args:
        basis: of the base's weight.
        matrix: the matricized *rounded* weight, (rows, columns).
        change: ΔW, matricized likewise.
    """
    start, stop = basis.split
    work, change = (matrix, change) if basis.left else (matrix.T, change.T)
    result = torch.zeros_like(basis.sigma)
    low, tail = basis.factor[start:stop].double(), basis.tail.double()
    product = torch.zeros(work.shape[0], work.shape[0], dtype=torch.float64)
    # `change` and `work` are wide: they are gone through once, some columns at a time, and only K × K sums are kept.
    for place in _pieces(work):
        piece = change[:, place].double()
        if start:
            product += piece @ work[:, place].double().T
        if stop > start:  # nothing is divided by a small σ: the tail's vᵢ are there as they are
            result[start:stop] += ((low @ piece) * tail[:, place]).sum(1)
    # The diagonal of Uᵀ (ΔW Wᵀ) U without the rest of it, in the order (Uᵀ P) ⊙ Uᵀ: K³ multiplications, not 2 K³.
    high = basis.factor[:start].double()
    result[:start] = ((high @ product) * high).sum(1) / basis.sigma[:start]
    return result


def _pieces(work: Tensor) -> Iterator[slice]:
    """Yield ranges of columns that hold about PIECE numbers."""
    step = max(1, PIECE // max(1, work.shape[0]))
    for start in range(0, work.shape[1], step):
        yield slice(start, start + step)


def project_change(
    prepared: Prepared, change: Tensor, *, name: str = "the weight"
) -> tuple[NDArray[np.float64], Energy]:
    """Return the δ whose ΔW is nearest to a change of a weight, float64, and how much of the change that is.

    δᵢ = uᵢᵀ ΔW vᵢ, the mean of it in a tied run and 0 where σ is null, and at least −σᵢ: of all valid δ the one with
    the smallest ‖ΔW − U diag(max(δ, −σ)) Vᵀ‖. For an elementwise parameter δ is ΔW.

    Args:
        prepared: the weight of the base.
        change: ΔW in the weight's own shape, of any floating-point dtype.
        name: what errors call the weight.

    Raises:
        TensorError: the sum of its squares is beyond float64, or it holds NaN.
    """
    if prepared.basis is None:
        values = change.double().flatten().numpy()
        with np.errstate(over="ignore"):
            energy = float(values @ values)
        _check_size(name, energy)
        return values, Energy(energy, energy)
    whole = squared_norm(change)
    _check_size(name, whole)
    values = clipped(prepared, project(prepared.parameter, coordinates_of(prepared, change)))
    return values, Energy(whole, min(whole, float(values @ values)))  # the float32 factor may err upwards


def _check_size(name: str, energy: float) -> None:
    if not isfinite(energy):
        raise TensorError(f"{name}: the sum of the squares of its change is no finite number", fix="check its scale")


def coordinates_of(prepared: Prepared, change: Tensor) -> NDArray[np.float64]:
    """Return uᵢᵀ ΔW vᵢ (K,) for the change of a spectral parameter, in the weight's own shape."""
    axis = prepared.parameter.axis
    basis = cast("Basis", prepared.basis)
    return coordinates(basis, matricize(prepared.rounded, axis), matricize(change, axis)).numpy()


def clipped(prepared: Prepared, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return δ of a spectral parameter, equal in tied runs, as max(δ, −σ), equal in tied runs again.

    The mean of a run comes before this: clipped values have another one.
    """
    sigma = cast("Basis", prepared.basis).sigma.numpy()
    return project(prepared.parameter, np.maximum(shift, -sigma))


def project_shift(prepared: Prepared, shift: NDArray[np.float64], whole: float) -> tuple[NDArray[np.float64], Energy]:
    """Return a δ that another program trained as a file may hold it, and how much of its change that is.

    Where singular values are tied or null ΔW depends on the basis that a program found, so only the mean of a run is
    kept, and nothing of a null shift (spec, section 7.11).

    Args:
        prepared: the weight of the base.
        shift: δ (size,).
        whole: ‖ΔW‖² of it in that program.
    """
    values = project(prepared.parameter, shift)
    applied = values if prepared.basis is None else np.maximum(values, -prepared.basis.sigma.numpy())
    return values, Energy(whole, min(whole, float(applied @ applied)))


def squared_norm(change: Tensor) -> float:
    """Return ‖ΔW‖² in float64."""
    flat = change.flatten()
    return sum(float(piece.double().square().sum()) for piece in flat.split(PIECE))


def is_same_weight(base: Base, name: str, parameter: Parameter) -> bool:
    """Tell whether a base has the very weight that a file describes: shape and fingerprint.

    Raises:
        BaseError: the base has no such parameter, or it cannot be read.
    """
    return weight_mismatch(base, name, parameter) is None


def find_same_weights(base: Base, parameters: Mapping[str, Parameter]) -> set[str]:
    """Return the names of those weights that a base has just as a file describes them, looked at several at once.

    Raises:
        BaseError: as `is_same_weight`.
    """
    found = map_weights(_costs(parameters), lambda name: is_same_weight(base, name, parameters[name]))
    return {name for name, same in found.items() if same}


def check_same_weights(base: Base, parameters: Mapping[str, Parameter], what: str) -> None:
    """Raise BaseMismatchError unless a base has the very weights that a file, called `what`, describes.

    They are looked at several at once; the first that is another one is told.

    Raises:
        BaseError: as `is_same_weight`.
    """

    def check(name: str) -> None:
        if not is_same_weight(base, name, parameters[name]):
            raise BaseMismatchError(
                f"{name}: {what} was made for another base (fingerprint {parameters[name].fingerprint})",
                fix="name the base that it was made for",
            )

    map_weights(_costs(parameters), check)


def _costs(parameters: Mapping[str, Parameter]) -> dict[str, int]:
    return {name: prod(parameter.shape) for name, parameter in parameters.items()}
