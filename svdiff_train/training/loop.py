"""The training loop: DreamBooth (Eq. 1 and 3) with any method on any family, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

from svdiff_delta._util.atomic import sweep
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.devices import find_device
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import TrainError
from svdiff_delta.format.delta import Delta
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.data.familiarity import unfamiliar_lines
from svdiff_train.memory.frozen_outputs import FrozenOutputs, keep_outputs
from svdiff_train.memory.output_cache import OutputCache
from svdiff_train.memory.plan import available
from svdiff_train.memory.sharding import asked_for, check_sharding, share_out
from svdiff_train.methods import METHODS, Job, Result, TrainedDelta
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.pipelines import weights_digest
from svdiff_train.settings.base_advice import rate_lines, settle
from svdiff_train.settings.config import TrainConfig

from .callbacks import Watch
from .checkpoint import check_same, load_state, restore, save_state, states
from .graphed_step import step_of
from .lr_schedule import rate_factor
from .oom_advice import (
    FEWER,
    FILLED,
    PARTLY,
    SMALLER_BASE,
    device_kept,
    enough_memory,
    smaller_model,
    smaller_run,
    smaller_step,
)
from .processes import Crew, accelerator, crew_of, shared, unused
from .reports import Fault, Reports
from .setup import RunInputs, prepare_run
from .signals import remember_signals
from .step import Stepper
from .validation import Validation

TOLD: Final = 0.1
"""Of the memory that there is: a smaller model's plan is of no use to anybody."""

SHOWN: Final = 3
"""How many weights a line names."""


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What a run keeps while it goes on, and where.

    Attributes:
        folder: of everything.
        every: steps between states, from which `resume` goes on.
        newest: how many states stay.
        results_every: steps between results that all stay, so that the best can be chosen afterwards; None for none.
        resume: whether to go on from the newest state that is there.
    """

    folder: Path
    every: int = 100
    newest: int = 2
    results_every: int | None = None
    resume: bool = False

    @property
    def states(self) -> Path:
        """The folder of states."""
        return self.folder / "state"


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


def train(
    base: Base,
    images: Path | None,
    config: TrainConfig,
    *,
    cache: BasisCache | None = None,
    watch: Watch | None = None,
    keeping: Keeping | None = None,
    validation: Validation | None = None,
    class_folder: Path | None = None,
    trackers: Sequence[str] = (),
    skip_bad: bool = False,
    device: str | torch.device | None = None,
    cuda_graphs: bool = True,
    outputs: OutputCache | None = None,
    fsdp: bool = False,
) -> Outcome:
    """Train a delta, or a baseline, from a few pictures of one concept, or of several.

    Ctrl-C, SIGTERM and SIGHUP end the run after the current step: its state is kept, and what it has is returned. All
    processes of `torchrun` or `accelerate launch` must call this; each returns the same.

    Args:
        base: the opened pipeline.
        images: a folder of the subject's pictures; None if the config has concepts, which name their own.
        config: what to train and how.
        cache: where bases are kept; the default cache if not given.
        watch: whom to tell how far it is.
        keeping: what is kept on the way; nothing if not given.
        validation: pictures to paint on the way.
        class_folder: where pictures of the class are kept and found again; of several concepts, in a sub-folder for
            each class prompt.
        trackers: names of trackers as accelerate knows them, such as "tensorboard"; they need `keeping`.
        skip_bad: whether pictures, clips and pairs that cannot be used are left out.
        device: where to train; by default the GPU that accelerate gives this process, else the CPU.
        cuda_graphs: whether steps, and the denoiser of pictures of the class and on the way, are CUDA graphs on such a
            device, where they can be; they give the same.
        outputs: where what text encoders and the autoencoder gave is kept, if the config asks for that; the default
            cache if not given.
        fsdp: whether the processes share out the denoiser's frozen weights, block by block; as they do too where
            accelerate was launched so. The result is the same to rounding.

    Raises:
        InputError: no pictures, an unreadable one, a resolution that the model cannot take, or no such device.
        BaseError: the base cannot be loaded.
        SelectionError: a selector matches nothing that can be shifted, or no attention that can be regularized.
        TrainError: no family knows the base, nothing would be trained, the base has no cross-attention and
            `unmix_weight` is not 0, a state is of another run, memory is not enough, the device has failed, or the loss
            is not finite.
        OutputError: something cannot be kept.
    """
    config = settle(config, base)
    watch, factor = watch or Watch(), rate_factor(config)
    accelerate = accelerator(
        device,
        mixed_precision="no",  # autocast knows the method and needs no global state
        log_with=list(trackers) or None,
        project_dir=None if keeping is None else str(keeping.folder),
    )
    with device_kept(partial(_newest, keeping)), ExitStack() as stack:  # it fails again where δ is taken off
        crew = stack.enter_context(crew_of(accelerate))
        config = shared(config, crew)
        with enough_memory("while loading the model", smaller_model(config, SMALLER_BASE)):
            fsdp = fsdp or asked_for()
            if fsdp:
                check_sharding(config, crew.count)
            first = torch.device("cpu") if fsdp else accelerate.device
            opened = prepare_run(base, images, config, first, skip_bad=skip_bad)
        job = Job(base, opened.family, config, cache or BasisCache.beside(accelerate.device), watch.basis)
        METHODS[config.method].check(job)
        if validation is not None:
            validation.check(opened.family.pipeline)
        _tell_start(watch, base, opened)
        _tell_memory(watch, base, opened, accelerate.device, crew.count if fsdp else 1)
        identity = {"pictures": opened.digest(), "base": weights_digest(opened.family.pipeline)}
        if fsdp:
            share_out(opened.family.pipeline, opened.family.slots, accelerate.device)
            crew = replace(crew, together=True)
        graphed = cuda_graphs and not fsdp
        graphs = GraphedDenoiser(opened.family.pipeline, say=watch.say) if graphed else None
        with enough_memory("while painting pictures of the class", smaller_model(config, FILLED)):
            classes = opened.classes(base, class_folder, watch.class_images, crew, graphs)
        if graphs is not None:
            graphs.forget()  # those of the next pictures see what is trained, and steps need the memory
        if class_folder is not None:  # else they are painted again after a resume
            identity |= {f"pictures of {prompt}": pictures.digest() for prompt, pictures in classes.items()}
        for part in opened.family.pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        batches = opened.batches(classes)
        with crew.first_alone(), enough_memory("while encoding", smaller_model(config, FILLED)):
            kept = keep_outputs(
                opened.family,
                base,
                config,
                batches,
                outputs,
                trained=opened.trained(base),
                say=watch.say,
                progress=watch.encoded,
            )
        with enough_memory("while preparing what is trained", smaller_model(config, PARTLY)):
            tuned = stack.enter_context(METHODS[config.method].tune(job))
            stepper = Stepper(opened, tuned, accelerate, batches, factor)
            run = _Run(opened, stepper, crew, identity, step_of(stepper, watch.say, graphs=cuda_graphs))
            run.encoders = kept
            run.painting = graphs
        if opened.unmix is not None:
            stack.enter_context(opened.unmix.watching())
        stack.enter_context(_trackers(accelerate, trackers, run.facts()))
        crew.meet()  # what came so far took one of them longer than the others
        return run.go(watch, keeping, validation)


def _newest(keeping: Keeping | None) -> Path | None:
    """Return the newest state file, if any is kept."""
    return None if keeping is None else next(reversed(states(keeping.states)), None)


def _tell_start(watch: Watch, base: Base, opened: RunInputs) -> None:
    """Say what a person should know before the first step."""
    config = opened.config
    if watch.say is None:
        return
    for line in (*unused(), *opened.lines(), *unfamiliar_lines(base, opened), *rate_lines(config, base)):
        watch.say(line)
    if config.processes not in (None, 1):
        pictures = config.processes * config.accumulate * config.batch
        watch.say(f"{config.processes} processes: {pictures} pictures of the subject in each step")


def _tell_memory(watch: Watch, base: Base, opened: RunInputs, device: torch.device, processes: int) -> None:
    """Say what a run of a size that matters is going to need, and what there is."""
    there = available(device)
    if watch.say is None or there is None or opened.weight_bytes() < there * TOLD:
        return
    found = opened.memory(base, device, processes)
    for line in () if found is None else found.lines(smaller_run(opened.config)):
        watch.say(line)


def plan(
    base: Base,
    images: Path | None,
    config: TrainConfig,
    *,
    skip_bad: bool = False,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Check everything that can be checked before a run, and return what it would be, and the memory that it needs.

    Arguments and errors are those of `train`; nothing is done on the device.
    """
    config = settle(config, base)
    rate_factor(config)
    opened = prepare_run(base, images, config, torch.device("cpu"), skip_bad=skip_bad)
    METHODS[config.method].check(Job(base, opened.family, config, BasisCache()))
    weights = len(choose_kinds(base, opened.selectors, allow_missing=config.allow_missing))
    place = find_device("cuda" if torch.cuda.is_available() else "cpu") if device is None else find_device(device)
    memory = opened.memory(base, place)
    lines = [] if memory is None else [*memory.lines(smaller_run(config))]
    return {
        **config.facts(),
        **opened.facts(),
        "weights": weights,
        "pictures": [*opened.lines(), *unfamiliar_lines(base, opened)],
        **({} if memory is None else {"memory": {**memory.facts(), "lines": lines}}),
    }


@contextmanager
def _trackers(accelerator: Accelerator, names: Sequence[str], facts: Mapping[str, Any]) -> Iterator[None]:
    if names:
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in facts.items()}
        accelerator.init_trackers("svdiff", config=plain)
    try:
        yield
    finally:
        if names:
            accelerator.end_training()


class _Run:
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
        return _newest(keeping)

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
