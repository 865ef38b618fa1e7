"""Report the progress of a run to whoever watches it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from svdiff_delta.errors import InputError
from svdiff_delta.svd.prepare import Progress


@dataclass(frozen=True)
class Report:
    """The progress of a run at a report.

    Attributes:
        step: steps done.
        steps: in all.
        loss: of the last step (Eq. 3, and the unmix regularization where it is on), over all processes.
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
    """The functions that a run calls: about bases, class pictures and steps, and with remarks.

    Attributes:
        basis: called with bases done and in all.
        class_images: called with pictures done and in all.
        encoded: called with pictures done and in all, where they are encoded beforehand.
        step: called at each report.
        say: called with a remark.
        every: steps between reports, at which the loss is read and shifts with σ + δ < 0 are counted; also whenever
            something is written, and after the last step. None for 1 on a CPU, and 10 on a GPU, which such a look at it
            keeps waiting.
    """

    basis: Progress | None = None
    class_images: Progress | None = None
    encoded: Progress | None = None
    step: Callable[[Report], None] | None = None
    say: Callable[[str], None] | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError if `every` is no number of steps."""
        if self.every is not None and self.every < 1:
            raise InputError(f"every must be at least 1, is {self.every}")


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
