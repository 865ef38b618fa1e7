"""Put W + ΔW into memory that is there already, some columns or rows at a time (spec, section 6.6)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final

import torch
from torch import Tensor

from svdiff_delta.format.dtypes import Dtype

from .decomposition import Basis
from .fingerprint import PIECE, narrow
from .prepare import Prepared
from .workspace import Workspace

BLOCK: Final = 1 << 20
"""Numbers of a weight that are computed together: 4 MiB in float32, of which there are two."""

ALIGNED: Final = 16
"""What the width of a block is a multiple of: rows that begin within a cache line take MKL 1.4 times as long."""


def write_shifted(prepared: Prepared, shift: Tensor, target: Tensor, space: Workspace | None = None) -> None:
    """Put W + U diag(max(δ, −σ)) Vᵀ into a tensor, computed in float32 or wider and rounded once.

    Beside the target only two blocks of a weight are in memory. They are the same whatever the number of threads, so
    the bits are too. It is computed where the target is.

    Args:
        prepared: the weight of the base.
        shift: δ, (size,) float64, scaled and summed before.
        target: where to write, of the weight's own shape, any floating-point dtype and any strides.
        space: memory to use again; new memory if not given.
    """
    weight, space = prepared.weight, space or Workspace()
    if prepared.basis is None:
        target.copy_((weight.double() + shift.reshape(weight.shape)).to(target.dtype))
        return
    basis, axis, first = prepared.basis.to(target.device), prepared.parameter.axis, 0
    for part, place in zip(_blocks(weight, axis, basis), _blocks(target, axis, basis), strict=True):
        own = part.to(target.device)
        moved = own.movedim(axis, 0)
        rounded = round_rows(moved, prepared.parameter.dtype, space.take("rounded", tuple(moved.shape), own.device))
        matrix = rounded.view(moved.shape[0], -1)
        work = matrix if basis.left else matrix.T
        rows = space.take("rows", (basis.split[1], work.shape[1]), own.device)
        basis.write_change(work, shift, rows, work, first)
        first += work.shape[1]
        change = rounded.movedim(0, axis)
        place.copy_(change + own if own.dtype == torch.float64 else change.add_(own))


def round_rows(values: Tensor, dtype: Dtype, out: Tensor) -> Tensor:
    """Round to the basis dtype into float32 memory, in pieces that stay in the cache; −0 becomes +0."""
    step = max(1, PIECE // max(1, prod(values.shape[1:])))
    for piece, place in zip(values.split(step), out.split(step), strict=True):
        place.copy_(narrow(piece, dtype)).add_(0.0)
    return out


def _blocks(weight: Tensor, axis: int, basis: Basis) -> Iterator[Tensor]:
    """Yield parts of a weight that hold about `BLOCK` numbers and all of the short side."""
    dim = axis if not basis.left else int(axis == 0)  # the short side is `axis`, or all others
    size = weight.shape[dim]
    count = BLOCK * size // max(1, weight.numel())
    yield from weight.split(max(ALIGNED, count // ALIGNED * ALIGNED), dim)
