"""Tell weights that FSDP shares out over processes: each holds a part, and all of it while the layer computes."""

from __future__ import annotations

from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor


def is_sharded(weight: Tensor) -> bool:
    """Tell whether a weight is a `DTensor`, of which this process holds a part."""
    cls = type(weight)
    return cls.__name__ == "DTensor" and cls.__module__.startswith("torch.distributed")


FSDP: Final = "torch.distributed.fsdp"


def asked_by_fsdp(frame: FrameType) -> bool:
    """Tell whether a weight is read by FSDP's own code, which compares it with the parameter that it looks after.

    It does so at a model's first forward, and whenever the model has been moved.
    """
    return str(frame.f_globals.get("__name__", "")).startswith(FSDP)


def own_part(live: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's part of a sharded weight, and the same part of another tensor of its shape.

    No process waits for another one: each looks at its own part, and together they have looked at all.
    """
    sharded: Any = live
    part = original
    for dimension, placement in enumerate(sharded.placements):
        if placement.is_shard():  # as torch.chunk, of which the last parts may be empty
            count, index = sharded.device_mesh.size(dimension), sharded.device_mesh.get_local_rank(dimension)
            parts = torch.chunk(part, count, placement.dim)
            part = parts[index] if index < len(parts) else part.narrow(placement.dim, 0, 0)
    return sharded.to_local(), part
