"""Report the progress of a run to whoever watches it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from svdiff_delta.svd.prepare import Progress


@dataclass(frozen=True)
class Report:
    """The progress of a run after a step.

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
    """The functions that a run calls: about bases, class pictures and steps, and with remarks."""

    basis: Progress | None = None
    class_images: Progress | None = None
    step: Callable[[Report], None] | None = None
    say: Callable[[str], None] | None = None


def peak_memory(device: torch.device | None = None) -> int:
    """Return the most memory used so far, in bytes: of the GPU where device is one, otherwise of this process.

    Where the system does not say, it is 0.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Linux. Its ru_maxrss outlives exec: a process would count what the one that started it had used.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # no POSIX
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
