"""The training loop: DreamBooth (Eq. 1 and 3) with any method on any family, from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.accelerator import Accelerator

from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.devices import find_device
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.data.familiarity import unfamiliar_lines
from svdiff_train.memory.frozen_outputs import keep_outputs
from svdiff_train.memory.output_cache import OutputCache
from svdiff_train.memory.plan import available
from svdiff_train.memory.sharding import asked_for, check_sharding, share_out
from svdiff_train.methods import METHODS, Job
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.pipelines import weights_digest
from svdiff_train.settings.base_advice import rate_lines, settle
from svdiff_train.settings.config import TrainConfig

from .callbacks import Watch
from .graphed_step import step_of
from .keeping import Keeping, newest_state
from .lr_schedule import rate_factor
from .oom_advice import (
    FILLED,
    PARTLY,
    SMALLER_BASE,
    device_kept,
    enough_memory,
    smaller_model,
    smaller_run,
)
from .outcome import Outcome
from .processes import accelerator, crew_of, shared, unused
from .run import Run
from .setup import RunInputs, prepare_run
from .step import Stepper
from .validation import Validation

TOLD: Final = 0.1
"""Of the memory that there is: a smaller model's plan is of no use to anybody."""


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
    with (
        device_kept(partial(newest_state, keeping)),
        ExitStack() as stack,
    ):  # it fails again where δ is taken off
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
            run = Run(opened, stepper, crew, identity, step_of(stepper, watch.say, graphs=cuda_graphs))
            run.encoders = kept
            run.painting = graphs
        if opened.unmix is not None:
            stack.enter_context(opened.unmix.watching())
        stack.enter_context(_trackers(accelerate, trackers, run.facts()))
        crew.meet()  # what came so far took one of them longer than the others
        return run.go(watch, keeping, validation)


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
