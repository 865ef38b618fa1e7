"""Whom a run tells how far it is, and what of."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from svdiff_delta.prepare import Progress


@dataclass(frozen=True)
class Report:
    """What is known after a step.

    Attributes:
        step: steps done.
        steps: in all.
        loss: of this step (Eq. 3, and the unmix regularization where it is on), over all processes.
        rate: the learning rate of the first group.
        dead: shifts with σ + δ < 0; None where there are no shifts.
        memory: the most that this process has used so far, in bytes, of the GPU where it has one.
    """

    step: int
    steps: int
    loss: float
    rate: float
    dead: int | None
    memory: int


@dataclass(frozen=True)
class Watch:
    """Whom to tell: about bases, class pictures, and steps."""

    basis: Progress | None = None
    class_images: Progress | None = None
    step: Callable[[Report], None] | None = None
    say: Callable[[str], None] | None = None


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was used so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
