"""The training loop: DreamBooth on spectral shifts (Eq. 1 and 3), from top to bottom."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

from svdiff_delta.base import Base
from svdiff_delta.build import zero_delta
from svdiff_delta.cache import BasisCache
from svdiff_delta.delta import Delta
from svdiff_delta.errors import InputError, TrainError
from svdiff_delta.prepare import Progress
from svdiff_delta.runtime import Handle, attach

from . import draws
from .config import TrainConfig
from .data import find_images, load_image, to_tensor
from .families import Family, family_of
from .loss import prior_preserving_loss
from .pipelines import load_pipeline
from .sample import Sampling, generate

CLASS_SAMPLING = Sampling(steps=30, guidance=4.0, batch_size=8)


@dataclass(frozen=True)
class Outcome:
    """What a run gives: the delta, how many steps it had, and whether it was stopped before the last."""

    delta: Delta
    steps: int
    interrupted: bool


@dataclass(frozen=True)
class Watch:
    """Whom to tell how far it is: about bases, class pictures, and steps with their loss."""

    basis: Progress | None = None
    class_images: Progress | None = None
    step: Callable[[int, int, float], None] | None = None


def train(
    base: Base, images: Path, config: TrainConfig, *, cache: BasisCache | None = None, watch: Watch | None = None
) -> Outcome:
    """Train a delta from a few pictures.

    Ctrl-C ends the run after the current step and returns what it has.

    Args:
        base: the opened pipeline.
        images: a folder of the subject's pictures.
        config: what to train and how.
        cache: where bases are kept; the default cache if not given.
        watch: whom to tell how far it is.

    Raises:
        InputError: no pictures, an unreadable one, or a resolution that the model cannot take.
        BaseError: the base cannot be loaded.
        SelectionError: a selector matches nothing that can be shifted.
        TrainError: no family knows the base, or the loss is not finite.
    """
    watch = watch or Watch()
    found = find_images(images)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    pipeline: Any = load_pipeline(base, device=accelerator.device)
    family = family_of(pipeline)
    resolution = config.resolution or family.resolution
    _check_resolution(family, resolution)
    subjects = torch.stack([load_image(picture.path, resolution).pixels for picture in found.pictures])
    priors = _class_pictures(pipeline, config, resolution, watch) if config.with_prior else None
    start = zero_delta(base, *config.selectors, cache=cache, progress=watch.basis)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    with attach(pipeline, start, base=base, trainable=True, cache=cache) as handle:
        run = _Run(config, family, handle, accelerator, subjects, priors)
        steps, interrupted = run.all_steps(watch)
        facts = {**config.facts(), "images": len(found.pictures), "resolution": resolution, "steps": steps}
        trained = handle.delta(training=facts)
        metadata = trained.metadata.with_modelspec("resolution", f"{resolution}x{resolution}")
        return Outcome(Delta.from_stored(trained.stored, metadata), steps, interrupted)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; a second Ctrl-C interrupts at once."""
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _check_resolution(family: Family, resolution: int) -> None:
    if resolution < 1 or resolution % family.unit:
        raise InputError(f"the model cannot take {resolution} pixels", fix=f"use a multiple of {family.unit}")


def _class_pictures(pipeline: Any, config: TrainConfig, resolution: int, watch: Watch) -> Tensor:
    """Return pictures of the class from the base itself, (count, 3, height, width): z^pr of Eq. 3."""
    prompt = config.class_prompt or ""
    jobs = [(prompt, config.seed + index) for index in range(config.class_images)]
    pictures = generate(pipeline, jobs, CLASS_SAMPLING, watch.class_images)
    return torch.stack([to_tensor(picture.resize((resolution, resolution))) for picture in pictures])


class _Run:
    """One run's tensors and the step that uses them."""

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        handle: Handle,
        accelerator: Accelerator,
        subjects: Tensor,
        priors: Tensor | None,
    ) -> None:
        self.config, self.family, self.accelerator = config, family, accelerator
        self.subjects, self.priors = subjects, priors
        shifts = dict(handle.parameters())
        if not shifts:
            raise TrainError("nothing to train", fix="choose selectors that match a weight")
        self.trains_text = any(name.startswith("text_encoder") for name in shifts)
        self.parameters = list(shifts.values())
        optimizer = torch.optim.AdamW(_groups(handle, config), weight_decay=config.weight_decay)
        self.denoiser, self.optimizer = accelerator.prepare(family.denoiser, optimizer)
        self.prompts = [config.prompt] * config.batch_size
        if priors is not None:
            self.prompts += [config.class_prompt or ""] * config.batch_size
        with torch.no_grad():
            self.conditioning = family.encode_prompts(self.prompts)

    def all_steps(self, watch: Watch) -> tuple[int, bool]:
        """Run every step; return how many were done and whether Ctrl-C ended it."""
        with stop_on_interrupt() as asked:
            for step in range(self.config.steps):
                loss = self.step(step)
                if watch.step is not None:
                    watch.step(step + 1, self.config.steps, loss)
                if asked():
                    return step + 1, step + 1 < self.config.steps
        return self.config.steps, False

    def step(self, step: int) -> float:
        """Do one optimizer step on Eq. 3 and return its loss."""
        device = self.accelerator.device
        latents, noise, timesteps = (part.to(device) for part in self._batch(step))
        noised, target = self.family.noised(latents, noise, timesteps)
        conditioning = self.family.encode_prompts(self.prompts) if self.trains_text else self.conditioning
        with self.accelerator.autocast():
            prediction = self.family.predict(self.denoiser, noised, timesteps, conditioning)
        loss = prior_preserving_loss(prediction, target, self.config.batch_size, self.config.prior_weight)
        value = float(loss.detach())
        if not value < float("inf"):
            raise TrainError(f"the loss is {value} at step {step}", fix="lower the learning rate")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, noise and timesteps of this process's part of the step's batch, subjects first."""
        sets = [self.subjects] if self.priors is None else [self.subjects, self.priors]
        size, seed = self.config.batch_size, self.config.seed
        first = self.accelerator.process_index * size
        samples = [(index, kind) for kind in range(len(sets)) for index in range(first, first + size)]
        shape = self.family.latent_shape(*self.subjects.shape[-2:])

        def chosen(index: int, kind: int) -> Tensor:
            pictures = sets[kind]
            return pictures[draws.integer(len(pictures), seed, step, index, f"picture {kind}")]

        images = torch.stack([chosen(index, kind) for index, kind in samples])
        posterior = torch.stack([draws.noise(shape, seed, step, index, f"posterior {kind}") for index, kind in samples])
        noise = torch.stack([draws.noise(shape, seed, step, index, f"noise {kind}") for index, kind in samples])
        generators = [draws.generator(seed, step, index, f"timestep {kind}") for index, kind in samples]
        timesteps = torch.stack([self.family.draw_timestep(generator) for generator in generators])
        latents = self.family.sample_latents(self.family.encode_images(images), posterior)
        return latents, noise, timesteps


def _groups(handle: Handle, config: TrainConfig) -> Sequence[dict[str, Any]]:
    """Shifts of norm weights have a learning rate of their own."""
    kinds = handle.kinds()
    groups = []
    for kind, rate in (("spectral", config.learning_rate), ("elementwise", config.learning_rate_1d)):
        chosen = [parameter for name, parameter in handle.parameters() if kinds[name] == kind]
        if chosen:
            groups.append({"params": chosen, "lr": rate})
    return groups
