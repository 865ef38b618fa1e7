"""Compute ΔW, and put W + ΔW into memory that is there already, some columns or rows at a time (spec, section 6.6)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final, NamedTuple

import torch
from torch import Tensor

from svdiff_delta.format.dtypes import Dtype

from .decomposition import Basis
from .fingerprint import PIECE, narrow
from .prepare import CPU, Prepared
from .workspace import Workspace

BLOCK: Final = 1 << 20
"""Numbers of a weight that a CPU computes together: 4 MiB in float32, of which there are two."""

ALIGNED: Final = 16
"""What the width of a block is a multiple of: rows that begin within a cache line take MKL 1.4 times as long."""


class Part(NamedTuple):
    """Some columns or rows of a weight.

    Attributes:
        own: the base's values, unrounded.
        change: ΔW, float32 or wider; its memory is used again for the next part.
        place: where their sum goes.
    """

    own: Tensor
    change: Tensor
    place: Tensor


def total_of(own: Tensor, change: Tensor) -> Tensor:
    """Return W + ΔW in the wider of their dtypes; it may take the place of ΔW."""
    wide = torch.promote_types(own.dtype, change.dtype)
    return change.add_(own) if wide == change.dtype else change + own


def delta_weight(prepared: Prepared, shift: Tensor) -> Tensor:
    """Return ΔW in the weight's own shape, to the bit what a bake adds (spec, section 6.6).

    Float32 for spectral parameters; for elementwise ones ΔW is δ itself, float64.

    Args:
        prepared: the weight of the base.
        shift: δ, (size,) float64, scaled and summed before.
    """
    if prepared.basis is None:
        return shift.reshape(prepared.parameter.shape)
    weight = prepared.weight
    found = torch.empty(weight.shape)
    for part in shifted_parts(prepared, shift, weight, found):
        part.place.copy_(part.change)
    return found


def write_shifted(prepared: Prepared, shift: Tensor, target: Tensor, space: Workspace | None = None) -> None:
    """Put W + U diag(max(δ, −σ)) Vᵀ into a tensor, computed in float32 or wider and rounded once.

    It is computed where the target is; arguments are those of `shifted_parts`.
    """
    for part in shifted_parts(prepared, shift, prepared.weight, target, space, target.device):
        part.place.copy_(total_of(part.own, part.change))


def shifted_parts(
    prepared: Prepared,
    shift: Tensor,
    weight: Tensor,
    target: Tensor,
    space: Workspace | None = None,
    device: torch.device = CPU,
) -> Iterator[Part]:
    """Yield W, U diag(max(δ, −σ)) Vᵀ and their place in a tensor, part by part.

    Beside the target only two blocks of a weight are in memory. They are the same whatever the number of threads, so
    the bits are too.

    Args:
        prepared: the weight of the base.
        shift: δ, (size,) float64, scaled and summed before.
        weight: its values, unrounded.
        target: where the sum is to go, of the weight's own shape, any floating-point dtype and any strides.
        space: memory to use again; new memory if not given.
        device: where it is computed.
    """
    space = space or Workspace()
    if prepared.basis is None:
        yield Part(weight, shift.reshape(weight.shape).clone(), target)  # on the CPU: not every device has float64
        return
    basis, axis, first = prepared.basis.to(device), prepared.parameter.axis, 0
    for part, place in zip(_blocks(weight, axis, basis), _blocks(target, axis, basis), strict=True):
        own = part.to(device)
        moved = own.movedim(axis, 0)
        rounded = round_rows(moved, prepared.parameter.dtype, space.take("rounded", tuple(moved.shape), device))
        matrix = rounded.view(moved.shape[0], -1)
        work = matrix if basis.left else matrix.T
        rows = space.take("rows", (basis.split[1], work.shape[1]), device)
        basis.write_change(work, shift, rows, work, first)
        first += work.shape[1]
        yield Part(own, rounded.movedim(0, axis), place)


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
