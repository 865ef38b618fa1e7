"""The training loop: DreamBooth (Eq. 1 and 3) with any method on any family, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

from svdiff_delta.base import Base
from svdiff_delta.cache import BasisCache
from svdiff_delta.choice import choose_kinds
from svdiff_delta.delta import Delta
from svdiff_delta.errors import TrainError

from .batches import Batch, Batches, Texts
from .config import TrainConfig
from .enough import FEWER, FILLED, PARTLY, SMALLER_BASE, enough_memory, smaller_model, smaller_step
from .loss import prior_preserving_loss
from .methods import METHODS, Job, Result, TrainedDelta, Tuned
from .opening import Opened, open_run
from .schedule import rate_factor
from .signals import remember_signals
from .state import check_same, load_state, restore, save_state, states
from .validate import Validation
from .watch import Report, Watch, peak_memory

HALF: Final[Mapping[str, torch.dtype]] = {"fp16": torch.float16, "bf16": torch.bfloat16}


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
    """

    result: Result
    steps: int
    loss: float | None
    signal: int | None
    main_process: bool

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
) -> Outcome:
    """Train a delta, or a baseline, from a few pictures of one concept, or of several.

    Ctrl-C and SIGTERM end the run after the current step: its state is kept, and what it has is returned. All processes
    of `torchrun` or `accelerate launch` must call this; each returns the same.

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
        skip_bad: whether pictures that cannot be read are left out.

    Raises:
        InputError: no pictures, an unreadable one, or a resolution that the model cannot take.
        BaseError: the base cannot be loaded.
        SelectionError: a selector matches nothing that can be shifted, or no attention that can be regularized.
        TrainError: no family knows the base, nothing would be trained, the base has no cross-attention and
            `unmix_weight` is not 0, a state is of another run, there is not enough memory, or the loss is not finite.
        OutputError: something cannot be kept.
    """
    watch, method, factor = watch or Watch(), METHODS[config.method], rate_factor(config)
    accelerator = Accelerator(
        mixed_precision="no",  # autocast below knows the method and needs no global state
        log_with=list(trackers) or None,
        project_dir=None if keeping is None else str(keeping.folder),
    )
    with enough_memory("while loading the model", smaller_model(config, SMALLER_BASE)):
        opened = open_run(base, images, config, accelerator.device, skip_bad=skip_bad)
    if watch.say is not None:
        for line in opened.lines():
            watch.say(line)
    pipeline, family = opened.family.pipeline, opened.family
    with (
        accelerator.main_process_first(),  # the others find pictures of the class in the folder
        enough_memory("while painting pictures of the class", smaller_model(config, FILLED)),
    ):
        batches = opened.batches(base, class_folder, watch.class_images)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    facts = {**config.facts(), **opened.facts()}
    job = Job(base, family, config, cache or BasisCache(), watch.basis)
    with ExitStack() as stack:
        with enough_memory("while preparing what is trained", smaller_model(config, PARTLY)):
            tuned = stack.enter_context(method.tune(job))
            run = _Run(opened, tuned, accelerator, batches, factor, facts)
        if opened.unmix is not None:
            stack.enter_context(opened.unmix.watching())
        stack.enter_context(_trackers(accelerator, trackers, facts))
        return run.go(watch, keeping, validation)


def plan(base: Base, images: Path | None, config: TrainConfig, *, skip_bad: bool = False) -> dict[str, Any]:
    """Check everything that can be checked before a run, and return what it would be.

    Arguments and errors are those of `train`.
    """
    rate_factor(config)
    opened = open_run(base, images, config, torch.device("cpu"), skip_bad=skip_bad)
    weights = len(choose_kinds(base, opened.selectors))
    return {**config.facts(), **opened.facts(), "weights": weights, "pictures": [*opened.lines()]}


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
    """One run: its tensors, and the step that uses them."""

    def __init__(
        self,
        opened: Opened,
        tuned: Tuned,
        accelerator: Accelerator,
        batches: Batches,
        factor: Callable[[int], float],
        facts: Mapping[str, Any],
    ) -> None:
        config, family = opened.config, opened.family
        self.config, self.family, self.tuned, self.accelerator = config, family, tuned, accelerator
        self.batches, self.unmix, self.digest = batches, opened.unmix, opened.digest()
        self.factor, self.facts = factor, dict(facts)
        self.parameters = dict(tuned.parameters())
        groups = tuned.groups()
        self.rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.mixed_precision == "fp16")
        self.texts = Texts(family, trained=not tuned.components.isdisjoint(family.text_slots))
        denoiser: Any = family.denoiser
        if config.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        self.denoiser: Any = torch.compile(denoiser) if config.compile else denoiser
        self.done = 0

    def go(self, watch: Watch, keeping: Keeping | None, validation: Validation | None) -> Outcome:
        """Run every step that is left; return what came out."""
        if keeping is not None and keeping.resume:
            self._resume(keeping, watch)
        came, losses = None, list[float]()
        with remember_signals() as asked:
            while self.done < self.config.steps and came is None:
                loss = self._guarded(keeping)
                losses.append(loss)
                self.done += 1
                self._tell(watch, loss)
                self._keep(keeping, last=self.done == self.config.steps)
                if validation is not None and validation.is_due(self.done, self.config.steps):
                    self._validate(validation, keeping)
                came = self._agree(asked())
        early = came is not None and self.done < self.config.steps
        if early and keeping is not None:
            self._save_state(keeping)
        last = losses[-max(1, len(losses) // 10) :]
        return Outcome(
            result=self._result(),
            steps=self.done,
            loss=sum(last) / len(last) if last else None,
            signal=came if early else None,
            main_process=self.accelerator.is_main_process,
        )

    def _guarded(self, keeping: Keeping | None) -> float:
        """Do one step; what was good before is kept if it fails, unless memory did: δ may be half of each step then."""
        with enough_memory(f"at step {self.done + 1}", smaller_step(self.config)), self._kept_on_error(keeping):
            return self.step(self.done)

    @contextmanager
    def _kept_on_error(self, keeping: Keeping | None) -> Iterator[None]:
        try:
            yield
        except TrainError:
            if keeping is not None:
                self._save_state(keeping)
            raise

    def step(self, step: int) -> float:
        """Do one optimizer step on Eq. 3 and return its loss.

        Raises:
            TrainError: the loss is not finite; nothing has changed then.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(step)
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(self.config.accumulate):
            batch = self.batches.batch(step, self._samples(part))
            with nullcontext() if self.unmix is None else self.unmix.on(batch):
                one = self._loss(batch) / self.config.accumulate
                self.scaler.scale(one).backward()
            loss += one.detach()
        self.tuned.mask_gradients()
        loss = self._share(loss)
        value = float(loss)
        if not value < float("inf"):
            raise TrainError(
                f"the loss is {value} at step {step + 1}", fix="lower the learning rate, or run without mixed precision"
            )
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _samples(self, part: int) -> list[int]:
        """Return this process's samples of a part of the step, by their numbers in the whole batch."""
        size = self.config.batch
        first = (part * self.accelerator.num_processes + self.accelerator.process_index) * size
        return list(range(first, first + size))

    def _loss(self, batch: Batch) -> Tensor:
        """Return Eq. 3 on a batch, with the unmix regularization if it is asked for."""
        noised, target = self.family.noised(batch.latents, batch.noise, batch.timesteps)
        conditioning = {**self.texts.conditioning(batch.prompts), "sizes": batch.sizes}
        half = HALF.get(self.config.mixed_precision)
        cast = nullcontext() if half is None else torch.autocast(self.accelerator.device.type, half)
        with cast:
            found = self.family.predict(self.denoiser, noised, batch.timesteps, conditioning)
        weights = self.family.loss_weights(batch.timesteps, self.config.snr_gamma)
        loss = prior_preserving_loss(found, target, batch.subjects, self.config.prior_weight, weights)
        return loss if self.unmix is None else loss + self.config.unmix * self.unmix.loss(batch)

    def _share(self, loss: Tensor) -> Tensor:
        """Let gradients and loss be the mean over all processes; δ is small, so one message does it."""
        if self.accelerator.num_processes == 1:
            return loss
        grads = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        flat = torch.cat([loss.reshape(1), *(grad.float().flatten() for grad in grads)])
        flat = cast("Tensor", self.accelerator.reduce(flat, "mean"))
        start = 1
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()
        return flat[0]

    def _agree(self, came: int | None) -> int | None:
        """Return the signal that reached any process, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return came
        number = torch.tensor([came or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(number).max()) or None

    def _tell(self, watch: Watch, loss: float) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        dead = self.tuned.dead()
        report = Report(self.done, self.config.steps, loss, rate, dead, peak_memory(self.accelerator.device))
        values = {"loss": loss, "learning_rate": rate} | ({} if dead is None else {"dead_shifts": dead})
        self.accelerator.log(values, step=self.done)
        if watch.step is not None:
            watch.step(report)

    def _result(self) -> Result:
        return self.tuned.result({**self.facts, "steps": self.done})

    def _keep(self, keeping: Keeping | None, *, last: bool) -> None:
        if keeping is None or not self.accelerator.is_main_process:
            return
        if self.done % keeping.every == 0 or last:
            self._save_state(keeping)
        if keeping.results_every is not None and self.done % keeping.results_every == 0:
            folder = keeping.folder / "steps"
            folder.mkdir(parents=True, exist_ok=True)
            suffix = ".safetensors" if self.config.method == "svdiff" else ""
            self._result().save(folder / f"step-{self.done:06d}{suffix}", overwrite=True)

    def _save_state(self, keeping: Keeping) -> None:
        if self.accelerator.is_main_process:
            save_state(
                keeping.states,
                self.done,
                self.parameters,
                self.optimizer,
                {**self.facts, "pictures": self.digest},
                self.scaler.state_dict(),
                keeping.newest,
            )

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
        check_same(state, found[-1], {**self.facts, "pictures": self.digest})
        restore(state, found[-1], self.parameters, self.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))
        self.done = state.step
        if watch.say is not None:
            watch.say(f"going on from step {self.done}")

    def _validate(self, validation: Validation, keeping: Keeping | None) -> None:
        if not self.accelerator.is_main_process:
            return
        folder = None if keeping is None else keeping.folder / "validation"
        when = f"while painting after step {self.done}"
        with self._kept_on_error(keeping), enough_memory(when, smaller_model(self.config, FEWER)):
            validation.paint(self.family.pipeline, self.done, folder, self.accelerator.trackers)
