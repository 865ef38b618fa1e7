"""Compute low-rank factors of ΔW from the largest |Δσ|, without another decomposition (spec, section 7.10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.svd.decomposition import Basis, one_thread
from svdiff_delta.svd.energy import Energy, total_energy
from svdiff_delta.svd.fingerprint import narrow

from .rank_policy import Ranking

PIECE: Final = 1 << 18
"""Numbers of a weight that are rounded and multiplied at a time: they stay in the processor's cache."""


@dataclass(frozen=True)
class Factors:
    """ΔW ≈ up · down of a matricized weight, each with √|Δσ|.

    Attributes:
        up: (rows, r) float64.
        down: (r, columns) float64.
        energy: Σ Δσ² of all singular values, and of those that are kept.
    """

    up: NDArray[np.float64]
    down: NDArray[np.float64]
    energy: Energy

    @property
    def rank(self) -> int:
        """The number of singular values that are kept."""
        return len(self.down)


def factorize(basis: Basis, matrix: Tensor, dtype: Dtype, shift: NDArray[np.floating], ranking: Ranking) -> Factors:
    """Return the best low-rank factors of ΔW = U diag(max(δ, −σ)) Vᵀ.

    U, Δσ and V are an SVD of ΔW but for signs and order, so the largest |Δσ|, of equal ones the first, leave the
    smallest error that a matrix of that rank can (Eckart and Young). Products run in float32, as section 6.5 allows.

    Args:
        basis: of the base's weight.
        matrix: the matricized weight, (rows, columns), as it stands in the base.
        dtype: the basis dtype, to which it is rounded.
        shift: δ, (K,).
        ranking: how many to keep.
    """
    change = np.maximum(shift.astype(np.float64), -basis.sigma.numpy())
    order = np.argsort(-np.abs(change), kind="stable")
    squares = np.square(change[order])
    kept = order[: ranking.count(squares)]
    with one_thread():  # so that the bytes do not depend on the number of cores
        short, long = _rows(basis, matrix if basis.left else matrix.T, dtype, torch.from_numpy(kept))
    root = np.sqrt(np.abs(change[kept]))
    left, right = (short, long) if basis.left else (long, short)
    energy = Energy(float(squares.sum()), float(squares[: len(kept)].sum()))
    return Factors(
        left.numpy().astype(np.float64).T * root,
        right.numpy().astype(np.float64) * (root * np.sign(change[kept]))[:, None],
        energy,
    )


def _rows(basis: Basis, work: Tensor, dtype: Dtype, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of both factors for some singular values, float32; only they are read and calculated.

    Args:
        basis: the basis.
        work: the matricized weight, transposed if its short side is the columns.
        dtype: the basis dtype.
        kept: which singular values, (r,); none of them null.
    """
    start, _ = basis.split
    short = basis.factor[kept]
    long = torch.empty(len(kept), work.shape[1])
    high = kept < start
    divided = short[high] / basis.sigma[kept[high], None].float()
    step = max(1, PIECE // max(1, work.shape[0]))
    space = torch.empty(work.shape[0] * step)
    product = torch.empty(divided.shape[0], work.shape[1])
    for place in range(0, work.shape[1], step):
        piece = work[:, place : place + step]
        rounded = space[: piece.numel()].view(piece.shape)
        # −0 stays: what it adds to a sum is nothing, and the writer makes +0 of a sum that is −0
        rounded.copy_(narrow(piece, dtype).float())
        torch.mm(divided, rounded, out=product[:, place : place + step])
    long[high] = product
    long[~high] = basis.tail[kept[~high] - start]
    return short, long


def split(factors: Factors, groups: int, ranking: Ranking) -> Factors:
    """Return the factors of a grouped convolution's ΔW, each group's own: the same number of the largest of each.

    U mixes the groups' outputs, so that each group's rows of ΔW are decomposed anew. PEFT convolves all inputs with the
    first factor, and of what comes out gives each group its share for the second: hence as many of each.

    Args:
        factors: of all of ΔW, (rows, r) and (r, columns), where the rows of a group follow one another.
        groups: their number.
        ranking: how many to keep, all groups together.

    Returns:
        Factors (rows, m) and (groups · m, columns), those of a group one after the other.
    """
    with one_thread():
        change = torch.from_numpy(factors.up @ factors.down).reshape(groups, -1, factors.down.shape[1])
        left, sigma, right = torch.linalg.svd(change, full_matrices=False)
    squares = sigma.square().sum(0).numpy()
    kept = ranking.within(groups).count(squares)
    root = sigma[:, :kept].sqrt()
    up = (left[..., :kept] * root[:, None]).reshape(-1, kept)
    down = (right[:, :kept] * root[..., None]).reshape(groups * kept, -1)
    return Factors(up.numpy(), down.numpy(), Energy(factors.energy.whole, float(squares[:kept].sum())))


@dataclass(frozen=True)
class LayerRows:
    """The rows of one weight in a layer of the original code, which may hold several.

    Attributes:
        start, stop: the rows.
        total: the number of all of them.
        swap: whether their halves stand in the other order there.
    """

    start: int
    stop: int
    total: int
    swap: bool = False


def joined(parts: Sequence[tuple[Factors, LayerRows]]) -> Factors:
    """Return the factors of a layer that holds several weights, each with its own ranks; rows of others are 0.

    Args:
        parts: the factors of each weight that changes, and its rows in the layer.

    Returns:
        Factors (all rows, Σ r) and (Σ r, columns).
    """
    rank = sum(factors.rank for factors, _ in parts)
    up, place = np.zeros((parts[0][1].total, rank)), 0
    for factors, rows in parts:
        own = np.concatenate([*reversed(np.split(factors.up, 2))]) if rows.swap else factors.up
        up[rows.start : rows.stop, place : place + factors.rank] = own
        place += factors.rank
    energy = total_energy(found.energy for found, _ in parts)
    return Factors(up, np.concatenate([factors.down for factors, _ in parts]), energy)


@dataclass(frozen=True)
class StackPlace:
    """The place of one expert's weight in a parameter in which those of all experts are stacked.

    Attributes:
        number: the expert.
        count: the number of all experts.
        rows: the rows of the weight, where the matrix of an expert holds several; else None.
        transposed: whether the product of the factors is (inputs, outputs).
    """

    number: int
    count: int
    rows: LayerRows | None = None
    transposed: bool = False


def stacked(parts: Sequence[tuple[Factors, StackPlace]]) -> Factors:
    """Return the factors of all experts, each with the largest rank that one of them needs; 0 where nothing changes.

    Args:
        parts: the factors of each weight that changes, and its place.

    Returns:
        Factors (rows, r · E), of which every E-th column is one expert's, and (E · r, columns), one after the other.
    """
    count, experts = parts[0][1].count, dict[int, list[tuple[Factors, StackPlace]]]()
    for part in parts:
        experts.setdefault(part[1].number, []).append(part)
    whole = {number: _of_expert(own) for number, own in experts.items()}
    first, rank = whole[parts[0][1].number], max(found.rank for found in whole.values())
    up, down = np.zeros((len(first.up), rank, count)), np.zeros((count, rank, first.down.shape[1]))
    for number, found in whole.items():
        up[:, : found.rank, number], down[number, : found.rank] = found.up, found.down
    energy = total_energy(found.energy for found in whole.values())
    return Factors(up.reshape(len(up), -1), down.reshape(-1, down.shape[2]), energy)


def _of_expert(own: Sequence[tuple[Factors, StackPlace]]) -> Factors:
    places = [(factors, place.rows) for factors, place in own if place.rows is not None]
    factors = joined(places) if places else own[0][0]
    return Factors(factors.down.T, factors.up.T, factors.energy) if own[0][1].transposed else factors


def spread(down: NDArray[np.float64], groups: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the second factor over the inputs of all groups, 0 where a row is not of that group.

    Args:
        down: (groups · m, columns), as `split` returns it.
        groups: their number.
        shape: of the weight, (out, in/groups, k, …).
    """
    inputs, ranks = shape[1], len(down) // groups
    result = np.zeros((groups, ranks, groups, inputs, down.shape[1] // inputs))
    each = np.arange(groups)
    result[each, :, each] = down.reshape(groups, ranks, inputs, -1)
    return result.reshape(groups * ranks, -1)
