"""Make ΔW of W and its square factor."""

from __future__ import annotations

from torch import Tensor

from svdiff_delta.runtime.wide_product import spectral_product


def square_change(matrix: Tensor, square: Tensor, gain: Tensor, tail: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return ΔW = U (Δσ/σ ⊙ Uᵀ W) or (W V ⊙ Δσ/σ) Vᵀ, with the tail's part, (rows, columns) in the dtype of sums.

    Args:
        matrix: W, (rows, columns), in the dtype of sums.
        square: Uᵀ where rows ≤ columns, else Vᵀ, (K, K).
        gain: (K + t,): Δσ/σ, then Δσ of the tail.
        tail: the rows (t, columns) and columns (rows, t) of the tail; None if t = 0.
    """
    left, main, square = matrix.shape[0] <= matrix.shape[1], gain[: len(square)], square.to(matrix.dtype)
    change = spectral_product(matrix.T, square, main).T if left else spectral_product(matrix, square, main)
    if tail is None:
        return change
    rows, columns = tail
    return change + (columns.to(change.dtype) * gain[len(square) :]) @ rows.to(change.dtype)
