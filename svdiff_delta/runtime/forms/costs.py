"""Compare what forms cost, by the shape of a layer's matrix; the cheapest of those that serve a layer is taken.

With m rows, n columns, K the shorter of both, and numbers counted as multiplications of one position's forward:

| form | held beside the model | a position | a call |
| --- | --- | --- | --- |
| factored (Z) | K (m + n) − m n, since W is dropped | K (m + n) | |
| additive | K (m + n) | m n + K (m + n) | |
| resident, m ≤ n | K² | m n + 2 K² | |
| resident, m > n | K² | 2 m n + 2 K² | |
| whole (W + ΔW) | as additive | m n | K m n |

Memory comes first, operations second: what people run out of is memory, and forms that hold the same differ little in
time. A form serves a layer only if its result is right to the layer's dtype: W + ΔW rounded to half precision is not
(a change of 1 % would err by 40 %), nor is the Z form. The factored form goes over to W + ΔW by itself, call by call,
where enough positions share one δ and nothing is trained.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """The cost of a form; the smaller tuple is the better one.

    Attributes:
        held: numbers held beside the model's own weights.
        operations: multiplications of a forward at one position.
    """

    held: int
    operations: int


def cost(form: str, rows: int, columns: int, *, dropped: bool = True) -> Cost:
    """Return what a form costs on a matrix.

    Args:
        form: its name.
        rows: of the matrix: the output channels.
        columns: of the matrix.
        dropped: whether W may be dropped where factors stand for it; not so if other layers share it. Where it is
            offloaded, it is not in the device's memory either way.
    """
    whole, short = rows * columns, min(rows, columns)
    both = short * (rows + columns)
    if form == "factored":
        return Cost(both - whole * dropped, both)
    if form == "resident":
        return Cost(short * short, whole * (1 if rows <= columns else 2) + 2 * short * short)
    return Cost(both, whole + both)


def whole_is_cheaper(rows: int, columns: int, rank: int, positions: int) -> bool:
    """Tell whether putting W + ΔW together once costs less than two products at every position.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        rank: R, what stands between both products.
        positions: how many positions share the gain in this call.
    """
    return rank * rows * columns + rows * columns * positions < rank * (rows + columns) * positions
