"""Decompose the update of a weight to the best low-rank factors: by its own structure where it has one, else as it is.

A LoRA, a LoHa and a LoKr are products of small matrices. Their singular values and vectors follow from those of the
small ones, exactly, so that ΔW is never made: an (m, n) LoHa of ranks r is a product of (m, r²) and (r², n), a LoKr has
the products of its factors' singular values. All else is decomposed in float64 by the Gram matrix of its short side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from svdiff_delta.svd.decomposition import matricize, one_thread
from svdiff_delta.svd.energy import Energy

from .lazy_tensors import Ref
from .low_rank_factors import Factors
from .rank_policy import Ranking
from .weight_updates import Hadamard, Kronecker, LowRank, Update

THIN: Final = 2
"""A product is decomposed by its factors where its inner side is at most the weight's short side by this."""

NOTHING: Final = 1e-30
"""The share of the largest σ² below which a Gram matrix holds rounding alone."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of ΔW, and their vectors for those that are asked for.

    Attributes:
        sigma: descending, (k,) float64.
        vectors: returns U (rows, r) and Vᵀ (r, columns) of the first r.
    """

    sigma: Tensor
    vectors: Callable[[int], tuple[Tensor, Tensor]]


def factors_of_update(update: Update, axis: int, ranking: Ranking) -> Factors | None:
    """Return the best factors of an update by its own structure; None if it has none that helps.

    Args:
        update: the update.
        axis: of the weight's outputs.
        ranking: how many singular values to keep.
    """
    with one_thread():
        found = _by_structure(update, axis)
        if found is None:
            return None
        squares = found.sigma.square().numpy()
        kept = ranking.count(squares)
        U, Vt = found.vectors(kept)
        root = found.sigma[:kept].sqrt()
        energy = Energy(float(squares.sum()), float(squares[:kept].sum()))
        return _factors(U * root, Vt * root[:, None], energy)


def factors_of_change(change: Tensor, axis: int, ranking: Ranking) -> Factors:
    """Return the best factors of ΔW, float64, whatever made it.

    The longer factor is ΔW times the singular vectors of the short side: so what the Gram matrix rounds away from the
    singular values changes nothing but how ΔW is shared out between both factors.

    Args:
        change: ΔW, in the weight's shape.
        axis: of the weight's outputs.
        ranking: how many singular values to keep.
    """
    with one_thread():
        matrix = matricize(change.double(), axis)
        wide = matrix.shape[0] <= matrix.shape[1]
        work = matrix if wide else matrix.T
        squares, vectors = torch.linalg.eigh(work @ work.T)
        squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
        squares[squares <= float(squares[:1].sum()) * NOTHING] = 0
        kept = ranking.count(squares.numpy())
        root = squares[:kept].sqrt().sqrt()
        short, long = vectors[:, :kept] * root, (vectors[:, :kept].T @ work) / root[:, None]
        energy = Energy(float(matrix.square().sum()), float(squares[:kept].sum()))
        return _factors(*((short, long) if wide else (long.T, short.T)), energy)


def _factors(up: Tensor, down: Tensor, energy: Energy) -> Factors:
    return Factors(np.ascontiguousarray(up.numpy()), np.ascontiguousarray(down.numpy()), energy)


def _by_structure(update: Update, axis: int) -> Spectrum | None:
    match update:
        case LowRank() if update.mid is None and update.groups == 1:
            up, down = update.up.read().flatten(1) * update.scale, update.down.read().flatten(1)
            # The product is (inputs, outputs) of what is stored transposed; its matrix has outputs as rows.
            return _of_product(up, down) if update.transposed == (axis == 1) else _of_product(down.T, up.T)
        case Hadamard() if update.t is None and axis == 0:
            return _of_hadamard(update)
        case Kronecker() if update.t is None and axis == 0:
            return _of_kronecker(_whole(update.first) * update.scale, _whole(update.second))
        case _:
            return None


def _whole(half: Sequence[Ref]) -> Tensor:
    left, *right = (ref.read() for ref in half)
    return left @ right[0].flatten(1) if right else left.flatten(1)


def _of_hadamard(update: Hadamard) -> Spectrum | None:
    """Return the spectrum of (a₁ b₁) ⊙ (a₂ b₂): row i of the left factor is a₁[i] ⊗ a₂[i] (Khatri and Rao)."""
    (a1, a2), (b1, b2) = ([ref.read() for ref in refs] for refs in (update.a, update.b))
    if a1.shape[1] * a2.shape[1] * THIN > min(a1.shape[0], b1.shape[1]):
        return None
    left = (a1[:, :, None] * a2[:, None, :]).flatten(1) * update.scale
    return _of_product(left, (b1[:, None, :] * b2[None, :, :]).flatten(0, 1))


def _of_product(left: Tensor, right: Tensor) -> Spectrum:
    """Return the spectrum of a product; of thin matrices that of what their own QR leaves of them."""
    if left.shape[1] * THIN > min(left.shape[0], right.shape[1]):
        U, sigma, Vt = _svd(left @ right)
    else:
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        inner, sigma, outer = _svd(r_left @ r_right.T)
        U, Vt = q_left @ inner, outer @ q_right.T
    return Spectrum(sigma, lambda kept: (U[:, :kept], Vt[:kept]))


def _of_kronecker(first: Tensor, second: Tensor) -> Spectrum:
    """Return the spectrum of w₁ ⊗ w₂: all products of both spectra, the largest first."""
    (U1, sigma1, Vt1), (U2, sigma2, Vt2) = _svd(first), _svd(second)
    sigma = torch.outer(sigma1, sigma2).flatten()
    order = torch.argsort(sigma, descending=True, stable=True)

    def vectors(kept: int) -> tuple[Tensor, Tensor]:
        i, j = order[:kept] // len(sigma2), order[:kept] % len(sigma2)
        U = (U1[:, None, i] * U2[None, :, j]).flatten(0, 1)
        return U, (Vt1[i, :, None] * Vt2[j, None, :]).flatten(1)

    return Spectrum(sigma[order], vectors)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
    return U, sigma, Vt
