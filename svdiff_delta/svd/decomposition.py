"""Decompose a rounded weight, and put δ back into the weight (spec, sections 6.3 to 6.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from svdiff_delta.base_model.devices import load_linear_algebra, multiply

TOLERANCE: Final = 1e-7
"""Of σ₁: neighbours at most this far apart are tied, values at most this large are null."""

READER_TOLERANCE: Final = 5e-8
"""What a reader with the base requires, so that implementations may differ about borderline gaps."""

NORMS_START: Final = 0.1  # of σ₁: below it eigenvalues of the Gram matrix say less of σ than projected rows do
TAIL_START: Final = 0.01  # of σ₁: below it the Gram matrix has squared too much away
TINY: Final = 2.2250738585072014e-308  # divides nulls to something finite
PIECE: Final = 1 << 24  # numbers that are float64 at a time: 128 MiB
BLOCK: Final = 160  # rows of a Gram matrix that are computed at a time, as far as the diagonal
STORED_ERROR: Final = 2.5e-7  # what products with a float32 factor err, relative to the weight
LARGEST_ERROR: Final = 1e-6  # of ΔW, which the tail rows keep


@dataclass(frozen=True)
class Runs:
    """Tied runs (first, last), inclusive, and the number of null singular values at the end."""

    tied: tuple[tuple[int, int], ...]
    null: int


@dataclass(frozen=True)
class Basis:
    """The one-sided basis of one matricized weight with K = min(rows, columns) (spec, section 6.3).

    Attributes:
        sigma: (K,) float64, descending.
        factor: (K, K) float32, orthogonal; its rows are the singular vectors of the short side.
        tail: (t, longer side) float32; rows of the other factor for the t smallest singular values that are not null.
        null: how many of the smallest singular values are null.
        left: whether the short side is the rows, so that `factor` is Uᵀ (else Vᵀ).
    """

    sigma: Tensor
    factor: Tensor
    tail: Tensor
    null: int
    left: bool

    @property
    def split(self) -> tuple[int, int]:
        """The indices at which the tail and the null part start."""
        stop = self.sigma.numel() - self.null
        return stop - self.tail.shape[0], stop

    def long_rows(self, matrix: Tensor) -> Tensor:
        """Return the other factor's rows (K, longer side) in float32; null rows are 0.

        Args:
            matrix: the matricized *rounded* weight, (rows, columns) float32.
        """
        start, stop = self.split
        work = matrix if self.left else matrix.T
        rows = torch.zeros_like(work)
        sigma = self.sigma[:start, None].float().to(work.device)
        rows[:start] = multiply(self.factor[:start], work) / sigma
        rows[start:stop] = self.tail
        return rows

    def delta_weight(self, matrix: Tensor, shift: Tensor) -> Tensor:
        """Return ΔW = U diag(max(δ, −σ)) Vᵀ, (rows, columns) float32 (Eq. 2 without cancellation).

        Args:
            matrix: the matricized *rounded* weight, (rows, columns) float32.
            shift: δ, (K,) float64, already scaled and summed.
        """
        work = matrix if self.left else matrix.T
        rows, product = work.new_empty(self.split[1], work.shape[1]), work.new_empty(work.shape)
        self.write_change(work, shift, rows, product)
        return product if self.left else product.T

    def write_change(self, work: Tensor, shift: Tensor, rows: Tensor, out: Tensor, first: int = 0) -> None:
        """Put ΔW, short side first, or some columns of it, into memory that is given.

        Args:
            work: the columns of the *rounded* weight, short side first, (K, n) float32.
            shift: δ, (K,) float64, already scaled and summed.
            rows: (K − null, n) float32, for what stands between the two products.
            out: (K, n) float32; it may be the memory of `work`.
            first: which column of the longer side is the first of these.
        """
        start, stop = self.split
        # Eq. 2 without cancellation: ΔW is made of Δσ alone, never as W_δ − W, whose difference rounding would swamp.
        change = torch.maximum(shift.double(), -self.sigma)
        # Uᵀ W is diag(σ) Vᵀ: scaling its rows by Δσ/σ gives diag(Δσ) Vᵀ, and V itself is never needed.
        multiply(self.factor[:start], work, rows[:start])
        rows[:start] *= (change[:start] / self.sigma[:start]).float()[:, None].to(rows.device)
        # The tail's rows of Vᵀ are stored, since σ there is too small to divide by; null rows change nothing.
        low = self.tail[:, first : first + work.shape[1]]
        torch.mul(low, change[start:stop].float()[:, None].to(rows.device), out=rows[start:])
        multiply(self.factor[:stop].T, rows, out)

    def to(self, device: torch.device) -> Basis:
        """Return the same basis with its vectors on a device; σ stays where it is, for not all have float64."""
        return replace(self, factor=self.factor.to(device), tail=self.tail.to(device))


def matricize(weight: Tensor, axis: int) -> Tensor:
    """Return the weight as (shape[axis], the rest) (section 3.1 of the paper, for axis 0)."""
    return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)


def unmatricize(matrix: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """Undo `matricize` for a weight of this shape."""
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return matrix.reshape(moved).movedim(0, axis)


def find_runs(sigma: Tensor, tolerance: float = TOLERANCE) -> Runs:
    """Return the tied runs and the null count of descending singular values (spec, section 6.4)."""
    values = sigma.double()
    count = values.numel()
    limit = tolerance * float(values[0]) if count else 0.0
    apart = values[:-1] - values[1:] > limit
    if not count or (float(values[-1]) > limit and bool(apart.all())):  # as most are
        return Runs((), 0)
    breaks = torch.nonzero(apart).flatten() + 1
    starts, stops = torch.cat([breaks.new_zeros(1), breaks]), torch.cat([breaks, breaks.new_full((1,), count)])
    null = values[stops - 1] <= limit  # by the smallest of each run
    tied = ~null & (stops - starts > 1)
    pairs = zip(starts[tied].tolist(), (stops[tied] - 1).tolist(), strict=True)
    return Runs(tuple(pairs), int((stops - starts)[null].sum()))


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (rows, K), σ (K,) descending and Vᵀ (K, columns) of a matrix, in float64 (spec, section 6.3)."""
    left = matrix.shape[0] <= matrix.shape[1]
    work = matrix if left else matrix.T
    (side,) = _short_sides([work])
    long = side.rows(work, 0, side.sigma.numel())
    return (side.short, side.sigma, long) if left else (long.T, side.sigma, side.short.T)


@dataclass(frozen=True)
class _Side:
    """The short side of a decomposed matrix (K, longer side).

    Attributes:
        short: (K, K) float64; its columns are the singular vectors of the short side.
        sigma: (K,) float64, descending.
        low: (t, longer side) float64; the other side's vectors, as rows, for the t smallest singular values.
    """

    short: Tensor
    sigma: Tensor
    low: Tensor

    def rows(self, work: Tensor, start: int, stop: int) -> Tensor:
        """Return the other side's vectors `start` to `stop` as rows, float64."""
        split = self.sigma.numel() - self.low.shape[0]
        middle = min(max(start, split), stop)
        high = _project(self.short[:, start:middle], work) / self.sigma[start:middle, None].clamp_min(TINY)
        return torch.cat([high, self.low[max(start, split) - split : max(stop, split) - split]])


def _short_sides(works: Sequence[Tensor]) -> list[_Side]:
    """Decompose matrices of one shape by the Gram matrices of their short sides.

    A GPU finds all their eigenvectors at once. A CPU takes one after the other even so, and where a matrix then begins
    in memory, which MKL's sums follow, would depend on which weights stand beside it.
    """
    if len(works) == 1 or works[0].device.type == "cpu":
        return [_refined(work, *torch.linalg.eigh(_gram(work))) for work in works]
    found = torch.linalg.eigh(torch.stack([_gram(work) for work in works]))
    return [_refined(*each) for each in zip(works, *found, strict=True)]


def _refined(work: Tensor, values: Tensor, vectors: Tensor) -> _Side:
    """Make the decomposition of a matrix of the eigenvalues and eigenvectors of its Gram matrix.

    That squares the spectrum, so eigenvalues give only the large singular values, the lengths of the projected rows
    those below σ₁/10, and what lies below σ₁/100 is decomposed once more, directly. At the borders σ is exact to 1e-13.
    """
    # `eigh` sorts upwards; rounding may leave eigenvalues of null directions a little below 0.
    short, sigma = vectors.flip(1).contiguous(), values.flip(0).clamp_min(0).sqrt()
    # An eigenvalue errs by about 1e-16 σ₁², so σ by 1e-16 σ₁²/σ: below σ₁/10 the length of uᵀW, which errs by 1e-16 σ₁
    # whatever σ is, is the better one. Two of them may change places by that.
    near = _count_above(sigma, NORMS_START)
    sigma[near:] = _lengths(short[:, near:], work)
    order = sigma[near:].argsort(descending=True, stable=True)
    short[:, near:], sigma[near:] = short[:, near:][:, order], sigma[near:][order]
    # Below σ₁/100 the eigenvectors themselves are mixed: what is left of W in their span, a matrix whose largest
    # singular value is σ₁/100, is decomposed by an SVD proper, and turns them within that span.
    start = _count_above(sigma, TAIL_START)
    low = _project(short[:, start:], work)
    if start < sigma.numel():
        inner, sigma[start:], low = torch.linalg.svd(low, full_matrices=False)
        short[:, start:] = short[:, start:] @ inner
    return _Side(short, sigma.cummin(0).values, low)  # at the borders the order may be off by the last bits


def _count_above(sigma: Tensor, share: float) -> int:
    """Return how many values are at least `share` of the first."""
    return int((sigma >= share * sigma[0]).sum())


def _gram(work: Tensor) -> Tensor:
    """Return work @ work.T in float64, from pieces that fit in memory; zeros above its diagonal blocks.

    It is symmetric, and `eigh` reads what is on and below the diagonal.
    """
    count = work.shape[0]
    gram = work.new_zeros((count, count), dtype=torch.float64)
    # Products of float32 numbers are exact in float64, and the sums run in one order: the same bits on any machine's
    # number of threads (`one_thread`).
    for piece in _pieces(work):
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            gram[start:stop, :stop].addmm_(piece[start:stop], piece[:stop].T)
    return gram


def _lengths(vectors: Tensor, work: Tensor) -> Tensor:
    """Return the lengths of the rows of vectors.T @ work in float64, from pieces that fit in memory."""
    if not vectors.shape[1]:
        return vectors.new_zeros(0)
    squares = ((vectors.T @ piece).square().sum(1) for piece in _pieces(work))
    return sum(squares, work.new_zeros((), dtype=torch.float64)).sqrt()


def _project(vectors: Tensor, work: Tensor) -> Tensor:
    """Return vectors.T @ work in float64, from pieces that fit in memory."""
    if not vectors.shape[1]:
        return vectors.new_zeros((0, work.shape[1]))
    return torch.cat([vectors.T @ piece for piece in _pieces(work)], 1)


def _pieces(work: Tensor) -> Iterator[Tensor]:
    """Yield the matrix in float64, some columns at a time."""
    step = max(1, PIECE // work.shape[0])
    for start in range(0, work.shape[1], step):
        yield work[:, start : start + step].double()


def compute_basis(rounded: Tensor, axis: int, *, two_sided: bool = False) -> Basis:
    """Return the basis of a rounded weight of any shape, on the CPU (spec, sections 6.3 and 6.5).

    Args:
        rounded: the weight, float32, on the device that is to compute.
        axis: the axis of output channels.
        two_sided: keep the whole other factor: faster to use, and four times as large.
    """
    return compute_bases([(rounded, axis)], two_sided=two_sided)[0]


def compute_bases(weights: Sequence[tuple[Tensor, int]], *, two_sided: bool = False) -> list[Basis]:
    """Return the bases of rounded weights whose matrices have one shape, in order, as `compute_basis` does.

    Args:
        weights: rounded weights with their axes of output channels, on the device that is to compute.
        two_sided: as there.
    """
    matrices = [matricize(rounded, axis) for rounded, axis in weights]
    left = matrices[0].shape[0] <= matrices[0].shape[1]
    works = [matrix if left else matrix.T for matrix in matrices]
    load_linear_algebra(works[0].device)
    with one_thread():
        sides = _short_sides(works)
        return [_basis(*each, left, two_sided=two_sided) for each in zip(works, sides, strict=True)]


def _basis(work: Tensor, side: _Side, left: bool, *, two_sided: bool) -> Basis:
    """Return what is kept of a decomposition, on the CPU."""
    sigma = side.sigma.cpu()
    null = find_runs(sigma).null
    stop = sigma.numel() - null
    start = 0 if two_sided else stop - tail_length(sigma, null)
    tail = side.rows(work, start, stop).float().cpu().contiguous()
    return Basis(sigma, side.short.T.float().cpu().contiguous(), tail, null, left)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's CPU work in this block run on one thread.

    Then its sums have one order, whatever the number of cores, and blocks in several threads do not hinder each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tail_length(sigma: Tensor, null: int) -> int:
    """Return how many rows of the other factor must be stored to keep ΔW within 1e-6 (spec, section 6.5)."""
    count, alive = sigma.numel(), sigma.numel() - null
    if alive == 0:
        return 0
    sums = sigma[:alive].pow(-2).cumsum(0)
    error = STORED_ERROR * sigma.square().mean().sqrt() * (sums / count).sqrt()
    return alive - int((error <= LARGEST_ERROR).sum())
