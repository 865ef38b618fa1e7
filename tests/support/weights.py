"""Weights with known spectra, and the float64 formulas that results are compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def orthogonal(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def with_spectrum(sigma: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A float32 matrix with (up to rounding) these singular values."""
    count = sigma.numel()
    return (orthogonal(rows, seed)[:, :count] * sigma.double() @ orthogonal(columns, seed + 1)[:count]).float()


def hadamard(size: int) -> Tensor:
    """A Sylvester matrix: all singular values equal."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def true_delta_weight(matrix: Tensor, shift: Tensor) -> Tensor:
    """U diag(max(δ, −σ)) Vᵀ by a float64 SVD of the matrix itself."""
    U, sigma, Vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return U * torch.maximum(shift.double(), -sigma) @ Vt


def projected_shift(sigma: Tensor, size: float, seed: int = 0) -> Tensor:
    """A random δ of the same size on all singular values, equal where they are tied, 0 where they are null."""
    values = sigma.numpy()
    shift = np.random.default_rng(seed).standard_normal(len(values)) * size
    limit = 1e-7 * values[0] if len(values) else 0.0
    group = np.concatenate([[0], np.cumsum(values[:-1] - values[1:] > limit)])
    for label in np.unique(group):
        members = group == label
        shift[members] = 0.0 if values[members].min() <= limit else shift[members].mean()
    return torch.from_numpy(shift)


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖; 0 where both are 0."""
    norm = b.double().norm()
    error = (a.double() - b.double()).norm()
    return float(error / norm) if norm else float(error)
