"""Compute bases on a GPU: a stream for each worker, copies from pinned memory, the CPU where a weight does not fit.

Weights of one small shape are decomposed at once: each alone leaves most of a card idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import torch
from torch import Tensor

from svdiff_delta._util.warned import warn_once
from svdiff_delta.errors import is_out_of_memory
from svdiff_delta.format.dtypes import Dtype

from .decomposition import Basis
from .fingerprint import round_into, round_weight

T = TypeVar("T")

WORKERS: Final = 8
"""Bases that are computed on a GPU at a time. On an H200, those of SD 1.5's down blocks took 2.6 s with 2 workers,
1.9 s with 4 or 8, and 1.5 s with 8 that have a stream each: eigenvectors of 1280 rows leave most of the card idle.
"""

EACH: Final = 1 << 30
"""Bytes that a worker may need: of a weight of 3072 × 12288 in float32, its pieces and its other side in float64."""

SMALL: Final = 512
"""Up to this many rows of the short side, weights of one shape are decomposed at once. Torch has one kernel for the
eigenvectors of a stack of matrices; larger ones fill more of the card, and have a stream each. (Not measured yet.)
"""

TOGETHER: Final = 16
"""How many at most, so that all workers have some."""

_FREE: Final[dict[torch.device, list[torch.cuda.Stream]]] = {}
"""Streams that no worker has. Torch keeps memory for each, so there are no more of them than there are workers."""


def gpu_workers(device: torch.device) -> int:
    """Return how many bases to compute at once on a GPU: as many as there is memory for, and 2 at least.

    Of two, one reads and uploads its weight while the other decomposes.
    """
    if device.type != "cuda":
        return 2
    free, _ = torch.cuda.mem_get_info(device)
    return max(2, min(WORKERS, free // EACH))


def round_for(weight: Tensor, dtype: Dtype, device: torch.device) -> Tensor:
    """Return a weight rounded to its basis dtype, as `round_weight` does: for CUDA in pinned memory.

    From there it is copied while other streams compute. Where the system pins no more, it is ordinary memory. (Pinned
    memory has not been tried on a card.)
    """
    if device.type != "cuda":
        return round_weight(weight, dtype)
    try:
        room = torch.empty(weight.shape, device="cpu", pin_memory=True)
    except RuntimeError:
        return round_weight(weight, dtype)
    return round_into(weight, dtype, room)


def compute_on(device: torch.device, rounded: Tensor, compute: Callable[[Tensor], Basis]) -> Basis:
    """Return the basis of a rounded weight (spec, sections 6.3 and 6.5), computed on a device, on the CPU.

    A weight that does not fit into the GPU's memory beside what else is there is decomposed on the CPU, to the same
    accuracy; that is said once.

    Args:
        device: where to compute.
        rounded: the weight, float32, on the CPU.
        compute: returns the basis of a weight, computed where that is.
    """
    if device.type == "cpu":
        return compute(rounded)
    found = _on_gpu(device, lambda: compute(upload(rounded, device)))
    if found is not None:
        return found
    shape = "×".join(map(str, rounded.shape))
    warn_once(
        f"{device}: has not enough memory for the basis of a weight of {shape}; this one and others that do not fit "
        "are computed on the CPU",
        "no memory for bases",
        device,
    )
    return compute(rounded)


def batches(shapes: Mapping[str, tuple[int, int]], order: Sequence[str], device: torch.device) -> list[list[str]]:
    """Return names in batches, each of weights that a device decomposes at once: none but singles on the CPU.

    Args:
        shapes: rows and columns of what is decomposed, by name; what has none stays alone.
        order: the names, the most costly first; so are the batches by their first name, and the names within.
        device: where bases are computed.
    """
    found: list[list[str]] = []
    open_: dict[tuple[int, int], list[str]] = {}
    for name in order:
        rows, columns = shapes.get(name, (0, 0))
        together = _together(rows, columns) if device.type != "cpu" and name in shapes else 1
        batch = open_.get((rows, columns))
        if batch is None or len(batch) >= together:
            batch = []
            found.append(batch)
            if together > 1:
                open_[rows, columns] = batch
        batch.append(name)
    return found


def _together(rows: int, columns: int) -> int:
    """Return how many weights of a shape to decompose at once: few enough for the memory that a worker may need."""
    short, long = min(rows, columns), max(rows, columns)
    if short > SMALL:
        return 1
    # The weight in float32, its other side twice in float64, and Gram matrix, eigenvectors and what `eigh` works in.
    each = 4 * short * long + 16 * short * long + 5 * 8 * short * short
    return max(1, min(TOGETHER, EACH // max(1, each)))


def compute_together(
    device: torch.device, rounded: Sequence[Tensor], compute: Callable[[Sequence[Tensor]], list[Basis]]
) -> list[Basis] | None:
    """Return the bases of rounded weights of one shape, computed on a GPU at once; None if they do not fit together.

    Args:
        device: the GPU.
        rounded: the weights, float32, on the CPU.
        compute: returns the bases of weights, computed where those are.
    """
    return _on_gpu(device, lambda: compute([upload(each, device) for each in rounded]))


def upload(rounded: Tensor, device: torch.device) -> Tensor:
    """Return a weight on a device; from pinned memory it goes there beside what is computed."""
    return rounded.to(device, non_blocking=True)


def _on_gpu(device: torch.device, compute: Callable[[], T]) -> T | None:
    """Return what is computed; None if memory is not enough, with all that it held given back."""
    try:
        with own_stream(device):
            return compute()
    except RuntimeError as error:  # its frames hold what was in memory, so the CPU's turn comes after this block
        if not is_out_of_memory(error):
            raise
    return None


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Let what a thread does on a CUDA device be in a stream of its own, so that threads do not wait for each other."""
    if device.type != "cuda":
        yield
        return
    free = _FREE.setdefault(device, [])
    try:
        stream = free.pop()
    except IndexError:
        stream = torch.cuda.Stream(device)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        free.append(stream)
