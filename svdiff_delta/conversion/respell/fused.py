"""Take fused layers apart and put them together: rows of the factors on the side of the outputs, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

from svdiff_delta.errors import InputError

from .raw import Raw, alpha_of, diagonal, stacked

UP, DOWN, ALPHA, MAGNITUDE = "lora_up.weight", "lora_down.weight", "alpha", "dora_scale"
ROWS: Final = (UP, "lora_up.bias", "diff", "diff_b", "w_norm", "b_norm")
"""Roles whose rows are the layer's."""

THROUGH: Final = "convert it through a delta, for which `rank` asks, or keep its dialect"

Tensors = Mapping[str, Raw]


def _units(tensors: Tensors, rows: int, where: str) -> dict[str, int]:
    """Return how many rows of the layer one row of each tensor stands for; those that are not there, for none.

    Raises:
        InputError: the rows of the layer are not rows of its tensors.
    """
    found = {role: 1 for role in tensors if role in ROWS or role in ("hada_w1_a", "hada_w2_a")}
    if tensors.keys() & {"hada_t1", "hada_t2", "lora_mid.weight"} and "hada_w1_a" in tensors:
        raise InputError(f"{where}: is in Tucker's form, which cannot be taken apart by rows", fix=THROUGH)
    for role in ("lokr_w1", "lokr_w1_a"):
        if role in tensors:
            found[role] = rows // max(1, tensors[role].shape[0])
    if (scale := tensors.get(MAGNITUDE)) is not None:
        if prod(scale.shape) != rows or scale.shape[0] != rows:
            raise InputError(
                f"{where}: has magnitudes of the fused layer's inputs, which its parts do not have", fix=THROUGH
            )
        found[MAGNITUDE] = 1
    return found


def cut(tensors: Tensors, rows: int, start: int, stop: int, where: str) -> dict[str, Raw]:
    """Return the tensors of some rows of a layer; those on the side of its inputs are shared.

    Args:
        tensors: of the layer, by role.
        rows: of the layer.
        start: the first of the rows.
        stop: the one after the last.
        where: what errors call it.

    Raises:
        InputError: they cannot be taken apart there.
    """
    found = dict(tensors)
    for role, unit in _units(tensors, rows, where).items():
        if start % unit or stop % unit or tensors[role].shape[:1] != (rows // unit,):
            row = start if start % unit else stop
            raise InputError(f"{where}: its {role} cannot be taken apart at row {row}", fix=THROUGH)
        found[role] = tensors[role].rows(start // unit, stop // unit)
    return found


def turn(tensors: Tensors, rows: int, where: str) -> dict[str, Raw]:
    """Return a layer's tensors with its two halves of rows in the other order."""
    found = dict(tensors)
    for role, unit in _units(tensors, rows, where).items():
        if (rows // unit) % 2:
            raise InputError(f"{where}: its {role} has no two halves", fix=THROUGH)
        found[role] = tensors[role].swapped()
    return found


def narrow(whole: Tensors, ranks: Sequence[int], index: int, piece: Tensors) -> dict[str, Raw] | None:
    """Return a part of a layer that was put together with blocks, as it was; None if it was not, or had none.

    Args:
        whole: the layer's tensors.
        ranks: of its parts, 0 for one that had none.
        index: which part.
        piece: its rows of the layer's tensors.
    """
    start, rank, total = sum(ranks[:index]), ranks[index], whole[DOWN].shape[0]
    stop = start + rank
    found = {**piece, UP: piece[UP].columns(start, stop), DOWN: piece[DOWN].rows(start, stop)}
    if (alpha := whole.get(ALPHA)) is not None:
        found[ALPHA] = alpha_of(alpha.number() * rank / total, alpha.dtype, alpha.shape)
    return found


def is_joined(whole: Tensors, ranks: Sequence[int], sizes: Sequence[int]) -> bool:
    """Tell whether a layer is put together of blocks of these ranks, and 0 elsewhere; its parts have `sizes` rows."""
    if whole.keys() - {ALPHA} != {UP, DOWN} or len(ranks) != len(sizes) or sum(ranks) != whole[DOWN].shape[0]:
        return False
    if any(rank < 0 for rank in ranks) or sum(sizes) != whole[UP].shape[0]:
        return False
    row = column = 0
    for rank, size in zip(ranks, sizes, strict=True):
        part = whole[UP].rows(row, row + size)
        if not part.is_zero(0, column) or not part.is_zero(column + rank, sum(ranks)):
            return False
        row, column = row + size, column + rank
    return True


def join(parts: Sequence[Tensors | None], sizes: Sequence[int], where: str) -> tuple[dict[str, Raw], list[int]]:
    """Return the tensors of a layer that holds others, and the rank of each where they became blocks; else none.

    Args:
        parts: the tensors of each, by role; None for one that has none.
        sizes: their numbers of rows.
        where: what errors call the layer.

    Raises:
        InputError: one layer cannot hold them.
        TensorError: their number formats differ.
    """
    there = [part for part in parts if part is not None]
    first = there[0]
    if any(part.keys() != first.keys() for part in there):
        raise InputError(f"{where}: is one layer there, and its parts have not the same tensors", fix=THROUGH)
    units = [_units(part, size, where) for part, size in zip(parts, sizes, strict=True) if part is not None]
    shared = first.keys() - units[0].keys()
    alike = all(part[role] == first[role] for part in there for role in shared)
    if alike and len(there) == len(parts) and len({tuple(sorted(unit.items())) for unit in units}) == 1:
        return {**first, **{role: stacked([part[role] for part in there]) for role in units[0]}}, []
    if first.keys() - {ALPHA} != {UP, DOWN}:
        raise InputError(f"{where}: is one layer there, and its parts share no factors", fix=THROUGH)
    return _blocks(parts, sizes, where)


def _blocks(parts: Sequence[Tensors | None], sizes: Sequence[int], where: str) -> tuple[dict[str, Raw], list[int]]:
    """Return LoRA of several layers as one: A below each other, B as blocks of a diagonal."""
    there = [part for part in parts if part is not None]
    ranks = [0 if part is None else part[DOWN].shape[0] for part in parts]
    tail, dtype = there[0][UP].shape[2:], there[0][UP].dtype
    empty = [Raw(dtype, (size, 0, *tail), b"") for size in sizes]
    ups = [blank if part is None else part[UP] for part, blank in zip(parts, empty, strict=True)]
    found = {UP: diagonal(ups), DOWN: stacked([part[DOWN] for part in there])}
    if ALPHA in there[0]:
        scales = {part[ALPHA].number() / max(1, part[DOWN].shape[0]) for part in there}
        if len(scales) > 1:
            shown = ", ".join(f"{scale:g}" for scale in sorted(scales))
            raise InputError(f"{where}: is one layer there, and its parts have several scales ({shown})", fix=THROUGH)
        alpha = there[0][ALPHA]
        value = alpha.number() * sum(ranks) / max(1, there[0][DOWN].shape[0])
        found[ALPHA] = alpha_of(value, alpha.dtype, alpha.shape)
        if found[ALPHA].number() != value:
            raise InputError(f"{where}: no number format holds the alpha {value!r} of its parts together", fix=THROUGH)
    return found, ranks
