"""Hold what a run gives."""

from __future__ import annotations

from dataclasses import dataclass

from svdiff_delta.errors import TrainError
from svdiff_delta.format.delta import Delta
from svdiff_train.methods import Result, TrainedDelta
from svdiff_train.settings.config import TrainConfig


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        result: what was trained.
        steps: how many steps it had.
        loss: the mean loss of the last tenth of the steps that were done here; None if none were left to do.
        signal: the signal that ended it before the last; None if it went to the end.
        main_process: whether this process is the one that writes.
        config: the run as it was, with its number of processes: what repeats it.
    """

    result: Result
    steps: int
    loss: float | None
    signal: int | None
    main_process: bool
    config: TrainConfig

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its last step."""
        return self.signal is not None

    @property
    def delta(self) -> Delta:
        """The delta, where that was trained.

        Raises:
            TrainError: the method makes something else.
        """
        if not isinstance(self.result, TrainedDelta):
            raise TrainError("the run made no delta", fix="use its `result`, or the method svdiff")
        return self.result.delta
