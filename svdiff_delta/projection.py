"""δ from the change of a weight: its projection on the base's singular vectors (spec, section 7.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import Base
from .basis import Basis, matricize
from .conversion import Energy
from .delta import project
from .errors import BaseMismatchError
from .parameter import Parameter
from .prepare import Prepared, difference

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
    for place in _pieces(work):
        piece = change[:, place].double()
        if start:
            product += piece @ work[:, place].double().T
        if stop > start:
            result[start:stop] += ((low @ piece) * tail[:, place]).sum(1)
    high = basis.factor[:start].double()
    result[:start] = ((high @ product) * high).sum(1) / basis.sigma[:start]
    return result


def _pieces(work: Tensor) -> Iterator[slice]:
    """Yield ranges of columns that hold about PIECE numbers."""
    step = max(1, PIECE // max(1, work.shape[0]))
    for start in range(0, work.shape[1], step):
        yield slice(start, start + step)


def project_change(prepared: Prepared, change: Tensor) -> tuple[NDArray[np.float64], Energy]:
    """Return the δ whose ΔW is nearest to a change of a weight, float64, and how much of the change that is.

    δᵢ = uᵢᵀ ΔW vᵢ, the mean of it in a tied run and 0 where σ is null, and at least −σᵢ: of all valid δ the one with
    the smallest ‖ΔW − U diag(max(δ, −σ)) Vᵀ‖. For an elementwise parameter δ is ΔW.

    Args:
        prepared: the weight of the base.
        change: ΔW in the weight's own shape, of any floating-point dtype.
    """
    parameter = prepared.parameter
    if prepared.basis is None:
        values = change.double().flatten().numpy()
        energy = float(values @ values)
        return values, Energy(energy, energy)
    basis, axis = prepared.basis, parameter.axis
    found = coordinates(basis, matricize(prepared.rounded, axis), matricize(change, axis)).numpy()
    # The mean of a run comes first: clipped values have another one.
    clipped = np.maximum(project(parameter, found), -basis.sigma.numpy())
    values = project(parameter, clipped)
    whole = squared_norm(change)
    return values, Energy(whole, min(whole, float(values @ values)))  # the float32 factor may err upwards


def squared_norm(change: Tensor) -> float:
    """Return ‖ΔW‖² in float64."""
    flat = change.flatten()
    return sum(float(piece.double().square().sum()) for piece in flat.split(PIECE))


def is_same_weight(base: Base, name: str, parameter: Parameter) -> bool:
    """Tell whether a base has the very weight that a file describes: shape and fingerprint.

    Raises:
        BaseError: the base has no such parameter, or it cannot be read.
    """
    return difference(base, name, parameter) is None


def check_same_weight(base: Base, name: str, parameter: Parameter, what: str) -> None:
    """Raise BaseMismatchError unless a base has the very weight that a file, called `what`, describes.

    Raises:
        BaseError: as `is_same_weight`.
    """
    if not is_same_weight(base, name, parameter):
        raise BaseMismatchError(
            f"{name}: {what} was made for another base (fingerprint {parameter.fingerprint})",
            fix="name the base that it was made for",
        )
