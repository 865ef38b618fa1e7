"""Say what one picture is to be, and hold what becomes of it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from svdiff_train.sampling.sample import Sampling

if TYPE_CHECKING:
    from .live_base import MixGains


@dataclass(frozen=True, eq=False)
class Job:
    """One picture.

    Attributes:
        prompt: what to paint.
        seed: of its noise.
        sampling: how it is sampled.
        mix: its δ; None for the base.
        key: whose it is, for fairness.
        deadline: the time by `time.monotonic` at which it is given up.
        at_once: whether an idle engine begins without waiting for others that may share its forwards.
    """

    prompt: str
    seed: int
    sampling: Sampling
    mix: MixGains | None
    key: str
    deadline: float
    at_once: bool = False


@dataclass(eq=False)
class Ticket:
    """A picture that was accepted.

    Attributes:
        job: what it is to be.
        answer: the picture, or the error that ended it; every ticket gets one.
        came: when it was accepted, by `time.monotonic`.
        began: when it was begun; None as long as it waits.
        gone: whether whoever asked has gone.
    """

    job: Job
    answer: Future[Any] = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)
    began: float | None = None
    gone: bool = False

    def late(self) -> bool:
        """Tell whether its deadline is over."""
        return time.monotonic() >= self.job.deadline
