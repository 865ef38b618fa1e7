"""Map δ to the gain between the two products of a shifted layer, in each form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from svdiff_delta.base_model.devices import multiply
from svdiff_delta.svd.decomposition import Basis, matricize

if TYPE_CHECKING:
    from svdiff_delta.svd.prepare import Prepared


@dataclass(frozen=True, eq=False)
class Response:
    """An affine map from Δ = max(δ, floor) to the gain: `gain = offset + slope ⊙ Δ[pick]`, all float64.

    Attributes:
        floor: (size,): −σ; −∞ where δ is not clipped.
        offset: (R,).
        slope: (R,).
        pick: (R,) which entry of Δ each gain follows; None if R = size and each follows its own.
    """

    floor: Tensor
    offset: Tensor
    slope: Tensor
    pick: Tensor | None = None

    @staticmethod
    def of_change(sigma: Tensor) -> Response:
        """Return the gain Δσ = max(δ, −σ) (spec, section 6.6)."""
        return Response(-sigma, torch.zeros_like(sigma), torch.ones_like(sigma))

    @staticmethod
    def of_shift(size: int) -> Response:
        """Return the gain δ itself: norm weights are not clipped."""
        zeros = torch.zeros(size, dtype=torch.float64)
        return Response(zeros - torch.inf, zeros, zeros + 1)


class Factors(NamedTuple):
    """The two factors of one matricized weight, or of its change: `columns @ (gain ⊙ (rows @ x))`.

    Attributes:
        rows: (R, columns of the matrix) float32.
        columns: (rows of the matrix, R) float32.
        response: how the gain depends on δ.
    """

    rows: Tensor
    columns: Tensor
    response: Response


def additive(prepared: Prepared, basis: Basis) -> Factors:
    """Return Vᵀ and U, between which Δσ stands: `W x + U (Δσ ⊙ Vᵀ x)`; computed where the basis' vectors are."""
    matrix = matricize(prepared.rounded, prepared.parameter.axis)
    long = basis.long_rows(matrix.to(basis.factor.device))
    rows, columns = (long, basis.factor.T) if basis.left else (basis.factor, long.T)
    return Factors(rows, columns, Response.of_change(basis.sigma))


def factored(matrix: Tensor, basis: Basis) -> Factors:
    """Return Z and U (or Vᵀ and WV where V is the square factor), with the tail's own rows below: the whole W + ΔW.

    With `g = 1 + Δσ/σ`, and 1 on tail and null rows: `U (g ⊙ Z x) + U_t (Δσ_t ⊙ V_t x)`.

    Args:
        matrix: the matricized weight as it is, (rows, columns).
        basis: its basis, with its vectors on the device of the matrix, where the products are computed.
    """
    matrix = matrix.float()
    start, stop = basis.split
    slope = torch.zeros_like(basis.sigma)
    slope[:start] = 1 / basis.sigma[:start]
    offset = torch.ones_like(basis.sigma)
    low = basis.factor[start:stop]
    # Both factors are written where they stay, with room for the tail: new memory is what attaching waits for.
    factor, count = basis.factor, basis.factor.shape[0] + len(low)
    rows, columns = matrix.new_empty(count, matrix.shape[1]), matrix.new_empty(matrix.shape[0], count)
    if basis.left:
        multiply(factor, matrix, rows[: len(factor)])
        rows[len(factor) :] = basis.tail
        torch.cat([factor.T, low.T], 1, out=columns)
    else:
        torch.cat([factor, low], out=rows)
        multiply(matrix, factor.T, columns[:, : len(factor)])
        columns[:, len(factor) :] = basis.tail.T
    if start == stop:
        return Factors(rows, columns, Response(-basis.sigma, offset, slope))
    length = stop - start
    pick = torch.cat([torch.arange(basis.sigma.numel()), torch.arange(start, stop)])
    offset, slope = torch.cat([offset, offset.new_zeros(length)]), torch.cat([slope, slope.new_ones(length)])
    return Factors(rows, columns, Response(-basis.sigma, offset, slope, pick))


class Square(NamedTuple):
    """The factors that make ΔW of W itself (resident form): `U (g ⊙ Uᵀ W)` or `(W V ⊙ g) Vᵀ`, with g = Δσ/σ.

    Attributes:
        factor: (K, K) float32: Uᵀ or Vᵀ, whichever is square.
        left: whether it is Uᵀ.
        tail: (t, ·) the factors of the smallest singular values, through which nothing is divided; None if t = 0.
        response: how the gain depends on δ: K for the square factor, then t for the tail.
    """

    factor: Tensor
    left: bool
    tail: tuple[Tensor, Tensor] | None
    response: Response


def resident(basis: Basis) -> Square:
    """Return the square factor of a basis, as it is kept, and the tail's rows and columns: no product is needed."""
    start, stop = basis.split
    slope = torch.zeros_like(basis.sigma)
    slope[:start] = 1 / basis.sigma[:start]
    offset, floor = torch.zeros_like(basis.sigma), -basis.sigma
    if start == stop:
        return Square(basis.factor, basis.left, None, Response(floor, offset, slope))
    low = basis.factor[start:stop]
    tail = (basis.tail, low.T) if basis.left else (low, basis.tail.T)
    pick = torch.cat([torch.arange(basis.sigma.numel()), torch.arange(start, stop)])
    zeros = offset.new_zeros(stop - start)
    response = Response(floor, torch.cat([offset, zeros]), torch.cat([slope, zeros + 1]), pick)
    return Square(basis.factor, basis.left, tail, response)
