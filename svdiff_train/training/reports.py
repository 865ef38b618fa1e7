"""Report how far a run is, and find out there whether its numbers are still finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from accelerate.accelerator import Accelerator
from torch import Tensor

from .callbacks import Report, Watch, peak_memory
from .records import Records, Snapshot, Taken, first_bad
from .step import Stepper

SELDOM: Final = 10
"""Steps between reports on a GPU: to read a number from it is to wait until it has done all that it was told."""


@dataclass(frozen=True)
class Fault:
    """What a report found wrong.

    Attributes:
        what: in words, with the steps.
        good: the last step that went well, of which all that is trained is now; None if that is lost.
    """

    what: str
    good: int | None


class Reports:
    """The reports of a run: between them nothing is read from the device.

    Args:
        stepper: does the steps.
        watch: whom to tell.
        steps: of the run.

    Attributes:
        losses: of all steps that were read.
    """

    def __init__(self, stepper: Stepper, watch: Watch, steps: int) -> None:
        self._stepper, self._watch, self._steps = stepper, watch, steps
        self._accelerator: Accelerator = stepper.accelerator
        self._every = watch.every or (1 if self._accelerator.device.type == "cpu" else SELDOM)
        self._records, self._taken, self._told = Records(), list[Taken](), 0
        self._good: Snapshot | None = None
        self.losses: list[float] = []

    def begin(self, done: int) -> None:
        """Note what there is before the first step: of δ, since a copy of whole models would take too much memory."""
        self._told = done
        self._good = None if self._stepper.tuned.clipped_count() is None else self._snapshot(done)

    def add(self, step: int, numbers: Tensor) -> None:
        """Note what a step gave, unread."""
        self._records.add(step, self._stepper.rate, numbers)

    def due(self, done: int) -> bool:
        """Tell whether there is a report after this step even if nothing is written."""
        return done % self._every == 0 or done == self._steps

    def fault(self, *, writing: bool) -> Fault | None:
        """Read what came since the last report; return what is wrong with it, None if nothing is.

        Args:
            writing: whether what is trained will be written now, and so must be looked at however large it is.
        """
        self._taken = taken = self._records.read()
        bad = first_bad(taken, scaled=self._stepper.scaler.is_enabled())
        looked = writing or bad is not None or (bool(taken) and self._good is not None)
        finite = self._stepper.finite() if looked else True
        if bad is None and finite:
            return None
        last = taken[-1].step if taken else self._told
        number, what = bad or (last, "what is trained is not finite")
        seen = f"the report after step {last} found it, in steps {self._told + 1} to {last}"
        return Fault(f"{what} at step {number} ({seen})", number - 1 if finite else self._back())

    def tell(self, done: int) -> None:
        """Tell of what `fault` has read."""
        taken, self._taken = self._taken, []
        if not taken:
            return
        dead = self._stepper.tuned.clipped_count()
        self._told, self._good = done, None if dead is None else self._snapshot(done)
        self.losses += [each.loss for each in taken]
        for each in taken:
            values = {"loss": each.loss, "learning_rate": each.rate}
            counted = dead is not None and each.step == done
            self._accelerator.log(values | ({"dead_shifts": dead} if counted else {}), step=each.step)
        if self._watch.step is not None:
            last, memory = taken[-1], peak_memory(self._accelerator.device)
            self._watch.step(Report(done, self._steps, last.loss, last.rate, dead, memory))

    def _back(self) -> int | None:
        """Let what is trained be what it was at the last report, if that was kept; return of which step it is."""
        if self._good is None:
            return None
        self._good.put_back()
        return self._good.step

    def _snapshot(self, done: int) -> Snapshot:
        means = {f"mean of {name}": mean for name, mean in self._stepper.means().items()}
        return Snapshot(done, {**self._stepper.parameters, **means}, self._stepper.optimizer)
