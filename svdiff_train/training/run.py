"""Go through the steps of a run, and keep, tell and paint what is due between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from svdiff_delta._util.atomic import sweep
from svdiff_delta.errors import TrainError
from svdiff_train.memory.frozen_outputs import FrozenOutputs
from svdiff_train.methods import Result
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser

from .callbacks import Watch
from .checkpoint import check_same, load_state, restore, save_state, states
from .keeping import Keeping, newest_state
from .oom_advice import FEWER, enough_memory, smaller_model, smaller_step
from .outcome import Outcome
from .processes import Crew
from .reports import Fault, Reports
from .setup import RunInputs
from .signals import remember_signals
from .step import Stepper
from .validation import Validation

SHOWN: Final = 3
"""How many weights a line names."""


class Run:
    """One run: its steps, and what is kept, told and painted between them."""

    def __init__(
        self,
        opened: RunInputs,
        stepper: Stepper,
        crew: Crew,
        identity: Mapping[str, str],
        step: Callable[[int], Tensor],
    ) -> None:
        self.opened, self.config, self.stepper, self.crew = opened, opened.config, stepper, crew
        self.accelerator, self.identity = stepper.accelerator, dict(identity)
        self.step, self.done, self._said = step, 0, False
        self.painting: GraphedDenoiser | None = None
        self.encoders: FrozenOutputs | None = None

    def facts(self, steps: int | None = None) -> dict[str, Any]:
        """Return the description of the run, or of its first steps: whoever does what it says gets the same."""
        config = self.config
        if steps is not None:
            config = replace(config, steps=steps, schedule_steps=config.horizon)
        return {**config.facts(), **self.opened.facts()}

    def go(self, watch: Watch, keeping: Keeping | None, validation: Validation | None) -> Outcome:
        """Run every step that is left; return what came out."""
        if keeping is not None and self.crew.first:
            for folder in (keeping.states, keeping.folder / "steps", keeping.folder / "validation"):
                sweep(folder)  # a run that was killed in its last step has nothing more to write there
        if keeping is not None and keeping.resume:
            self._resume(keeping, watch)
        reports = self.reports = Reports(self.stepper, watch, self.config.steps)
        reports.begin(self.done)
        came = None
        with remember_signals() as asked:
            while self.done < self.config.steps and came is None:
                reports.add(self.done + 1, self._guarded(keeping))
                self.done += 1
                self.stepper.average(self.done)
                if watch.say is not None and (line := self._untouched()):
                    watch.say(line)
                painting = validation is not None and validation.is_due(self.done, self.config.steps)
                state, result = self._due(keeping)
                if state or result or painting or reports.due(self.done):
                    self._report(keeping, writing=state or result)
                self._keep(keeping, state=state, result=result)
                if validation is not None and painting:
                    self._validate(validation, keeping)
                came = self.crew.greatest(asked() or 0) or None
        self._report(keeping, writing=True)  # what a signal cut short
        early = came is not None and self.done < self.config.steps
        if early and keeping is not None:
            self._save_state(keeping)
        last = reports.losses[-max(1, len(reports.losses) // 10) :]
        return Outcome(
            result=self._result(),
            steps=self.done,
            loss=sum(last) / len(last) if last else None,
            signal=came if early else None,
            main_process=self.crew.first,
            config=self.config,
        )

    def _untouched(self) -> str:
        """Return what to say, once, of weights that no gradient reaches: they are not trained."""
        if self._said:
            return ""
        self._said, names = True, self.stepper.untouched()
        if not names:
            return ""
        more = ", …" if len(names) > SHOWN else ""
        return (
            f"no gradient reaches {len(names)} of {len(self.stepper.places)} trained weights, since the loss does "
            f"not depend on them; they stay as they are: {', '.join(names[:SHOWN])}{more}"
        )

    def _guarded(self, keeping: Keeping | None) -> Tensor:
        """Do one step; what was good before is kept if it fails, unless memory did: δ may be half of each step then."""
        with enough_memory(f"at step {self.done + 1}", smaller_step(self.config)), self._kept_on_error(keeping):
            return self.step(self.done)

    @contextmanager
    def _kept_on_error(self, keeping: Keeping | None) -> Iterator[None]:
        try:
            yield
        except TrainError:
            fault = self.reports.fault(writing=True)
            if fault is None:
                self._save_good(keeping, self.done)
            else:
                self._save_good(keeping, fault.good)
            raise

    def _report(self, keeping: Keeping | None, *, writing: bool) -> None:
        """Tell of the steps since the last report.

        Raises:
            TrainError: a loss, a gradient or what is trained is not finite; what was good last is kept.
        """
        fault = self.reports.fault(writing=writing)
        if fault is not None:
            raise self._failure(fault, self._save_good(keeping, fault.good))
        self.reports.tell(self.done)

    def _failure(self, fault: Fault, path: Path | None) -> TrainError:
        kept = "no state is kept" if path is None else f"the last good state is kept in {path}"
        return TrainError(f"{fault.what}; {kept}", fix="lower the learning rate, or run without mixed precision")

    def _save_good(self, keeping: Keeping | None, good: int | None) -> Path | None:
        """Save the state of the last good step, if it is there; return where the newest good state is."""
        if keeping is None:
            return None
        if good is not None:
            self.done = good
            self._save_state(keeping)
        return newest_state(keeping)

    def _result(self) -> Result:
        with self.stepper.averaged():
            return self.stepper.tuned.result(self.facts(self.done))

    def _due(self, keeping: Keeping | None) -> tuple[bool, bool]:
        """Return whether a state is to be written after this step, and whether a result is."""
        if keeping is None:
            return False, False
        state = self.done % keeping.every == 0 or self.done == self.config.steps
        return state, keeping.results_every is not None and self.done % keeping.results_every == 0

    def _keep(self, keeping: Keeping | None, *, state: bool, result: bool) -> None:
        """Let the first process write what is due, and the others wait until it has."""
        if keeping is None:
            return
        # The result first: a run that is killed between the two does this step again, and writes both.
        if result and self.crew.first:
            folder = keeping.folder / "steps"
            folder.mkdir(parents=True, exist_ok=True)
            suffix = ".safetensors" if self.config.method == "svdiff" else ""
            self._result().save(folder / f"step-{self.done:06d}{suffix}", overwrite=True)
        if state:
            self._save_state(keeping)
        if state or result:
            self.crew.meet()

    def _save_state(self, keeping: Keeping) -> None:
        if self.crew.first:
            save_state(
                keeping.states,
                self.done,
                self.stepper.parameters,
                self.stepper.optimizer,
                self._identity(),
                self.stepper.scaler.state_dict(),
                keeping.newest,
                self.stepper.places,
                self.stepper.means(),
            )

    def _identity(self) -> dict[str, Any]:
        """Return what a run that goes on must have too; `steps` may grow."""
        return {**self.facts(), **self.identity}

    def _resume(self, keeping: Keeping, watch: Watch) -> None:
        """Go on from the newest state.

        Raises:
            TrainError: it is of another run.
            InputError: it is damaged.
        """
        found = states(keeping.states)
        if not found:
            return
        state = load_state(found[-1])
        check_same(state, found[-1], self._identity())
        kept = self.stepper.places, self.stepper.means()
        restore(state, found[-1], self.stepper.parameters, self.stepper.optimizer, *kept)
        if state.scaler:
            self.stepper.scaler.load_state_dict(dict(state.scaler))
        self.done = state.step
        if watch.say is not None:
            watch.say(f"going on from step {self.done}")

    def _validate(self, validation: Validation, keeping: Keeping | None) -> None:
        folder = None if keeping is None else keeping.folder / "validation"
        when = f"while painting after step {self.done}"
        memory = enough_memory(when, smaller_model(self.config, FEWER))
        here = nullcontext() if self.encoders is None else self.encoders.present()
        with self._kept_on_error(keeping), memory, here, self.stepper.averaged():
            trackers = self.accelerator.trackers
            validation.paint(self.opened.family.pipeline, self.done, folder, trackers, self.crew, self.painting)
        self.crew.meet()  # the first one writes
