"""Do training steps as CUDA graphs, one for each shape of batch; as they are where that cannot be, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from svdiff_train.data.batches import Batch
from svdiff_train.graphs.cuda_capture import Capture, CudaCapture
from svdiff_train.graphs.static_work import StaticWork

from .step import Stepper

MOST: Final = 8
"""How many graphs there are at most: each keeps the activations of its shape."""

DRAWN: Final = ("latents", "noise", "timesteps", "sizes")
"""What is drawn of a batch."""

TOLD: Final = "told."
"""Before the names of what the denoiser is told about prompts, among the names of inputs."""

Subjects = tuple[int, ...]
"""How many samples of the subject there are in each of the batches that a step accumulates."""

Bucket = tuple[Subjects, tuple[tuple[str, torch.Size, torch.dtype], ...]]


class GraphedStep:
    """Steps of a run, from the noised latents to the optimizer as one graph.

    What chance draws is drawn as ever and copied into buffers that stay, so a run with graphs is the run without, bit
    for bit. Draws are not in the graph. Each sample has a generator of its own, seeded by hash(seed, step, sample) on
    the CPU, so that a resume, another number of processes and another device draw the same. A graph could draw from
    generators of the device that are registered with it and seeded anew before each replay, but those give other
    numbers than the CPU's: a run on a card would not be the run of the same file on a processor, and what one has
    begun the other could not go on with. What that costs is a few copies of latents' size, beside thousands of kernels.

    A shape is captured after a few steps of it, which count.

    Args:
        stepper: does the steps without graphs.
        say: whom to tell, in one line, why steps are done without a graph.
        capture: how work is captured; by default as CUDA graphs, where the run is on such a device.

    Attributes:
        reason: why no step is captured; None if they are.
    """

    def __init__(
        self, stepper: Stepper, *, say: Callable[[str], None] | None = None, capture: Capture | None = None
    ) -> None:
        self._stepper, self._say = stepper, say
        self._works: dict[Bucket, StaticWork] = {}
        self._told = set[str]()
        self.reason = why_not(stepper)
        device = stepper.accelerator.device
        if self.reason is None and capture is None:
            if device.type == "cuda":
                capture = CudaCapture(device)
            else:
                self.reason = f"the run is on the {device.type.upper()}"
        self._capture = capture
        if self.reason is not None:
            self._tell(self.reason)
        else:
            _let_rates_be_tensors(stepper)

    def step(self, step: int) -> Tensor:
        """Do one optimizer step, as `Stepper.step` does it."""
        stepper = self._stepper
        if self.reason is not None:
            return stepper.step(step)
        stepper.set_rates(step)
        batches = [self._drawn(step, part) for part in range(stepper.config.accumulate)]
        inputs = {f"{part}.{name}": each for part, batch in enumerate(batches) for name, each in _inputs(batch)}
        work = self._work_for(inputs, tuple(batch.subjects for batch in batches))
        if work is None:
            return stepper.finish(stepper.learn(batches))
        result = work.run(inputs)
        if work.why is not None:
            self._tell(f"capturing one failed ({work.why})")
        return result

    def _drawn(self, step: int, part: int) -> Batch:
        """Return one of the batches that a step accumulates, with what the denoiser is told of its prompts."""
        batch = self._stepper.batches.batch(step, self._stepper.samples(part, 0))
        return replace(batch, told={**self._stepper.texts.conditioning(batch.prompts), **batch.seen})

    def _work_for(self, inputs: Mapping[str, Tensor], subjects: Subjects) -> StaticWork | None:
        """Return what does steps on inputs of these shapes; None if there are too many shapes."""
        bucket = subjects, tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if bucket not in self._works:
            if len(self._works) == MOST:
                self._tell(f"batches have more than {MOST} shapes; those after the first {MOST} have none")
                return None
            self._works[bucket] = StaticWork(
                lambda buffers: self._learn(buffers, subjects),
                inputs,
                held=self._held,
                clean=self._clean,
                capture=self._capture,
            )
        return self._works[bucket]

    def _learn(self, buffers: Mapping[str, Tensor], subjects: Subjects) -> Tensor:
        """Do all of a step that is on the device."""
        batches = [_batch(buffers, f"{part}.", count) for part, count in enumerate(subjects)]
        with _capturable(self._stepper.optimizer):
            return self._stepper.finish(self._stepper.learn(batches))

    def _held(self) -> list[Tensor]:
        """Return what a step changes, and the rates, which it reads."""
        stepper, optimizer = self._stepper, self._stepper.optimizer
        states = [optimizer.state[each] for each in stepper.parameters.values() if each in optimizer.state]
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        scaler = [stepper.scaler._scale, stepper.scaler._growth_tracker] if stepper.scaler.is_enabled() else []
        rates = [group["lr"] for group in optimizer.param_groups]
        scaler = [each for each in scaler if each is not None]  # None before the first step
        return [*stepper.parameters.values(), *moments, *scaler, stepper.bad, *rates]

    def _clean(self) -> None:
        """Let go of gradients, and of what the optimizer and the scaler noted of them."""
        self._stepper.optimizer.zero_grad()
        self._stepper.optimizer.__dict__.pop("found_inf", None)
        if self._stepper.scaler.is_enabled():
            self._stepper.scaler._per_optimizer_states.clear()

    def _tell(self, reason: str) -> None:
        if self._say is not None and reason not in self._told:
            self._say(f"steps without CUDA graphs: {reason}")
        self._told.add(reason)


def _inputs(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a batch, by name."""
    yield from zip(DRAWN, (batch.latents, batch.noise, batch.timesteps, batch.sizes), strict=True)
    for name, value in (batch.told or {}).items():
        yield TOLD + name, value


def _batch(buffers: Mapping[str, Tensor], prefix: str, subjects: int) -> Batch:
    """Return the batch whose tensors have a prefix among the buffers."""
    latents, noise, timesteps, sizes = (buffers[prefix + name] for name in DRAWN)
    start = prefix + TOLD
    told = {name.removeprefix(start): value for name, value in buffers.items() if name.startswith(start)}
    return Batch(latents, noise, timesteps, (), sizes, subjects, told=told)


def step_of(stepper: Stepper, say: Callable[[str], None] | None, *, graphs: bool) -> Callable[[int], Tensor]:
    """Return what does the steps of a run.

    Args:
        stepper: of the run.
        say: whom to tell why steps are no graphs; nobody is told that on a device that has none.
        graphs: whether they may be.
    """
    if not graphs or stepper.accelerator.device.type != "cuda":
        return stepper.step
    return GraphedStep(stepper, say=say).step


def why_not(stepper: Stepper) -> str | None:
    """Return why the steps of a run cannot be graphs, wherever it is; None if they can."""
    config = stepper.config
    reasons = {
        f"the method {config.method} has none": config.method != "svdiff",
        "the model is compiled": config.compile,
        "the run has several processes": (config.processes or 1) > 1,
        "a text encoder is trained": stepper.texts.trained,
        "the attention is regularized": stepper.unmix is not None,
        "gradient checkpointing looks at the state of random numbers": config.gradient_checkpointing,
        "the optimizer is not fused": not all(group.get("fused") for group in stepper.optimizer.param_groups),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _let_rates_be_tensors(stepper: Stepper) -> None:
    """Let the optimizer read its rates from the device, where each step writes them."""
    device = stepper.accelerator.device
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    for group in stepper.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=dtype, device=device)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let a step be captured; at other times torch warns of an optimizer that could be."""
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        group["capturable"] = capturing
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False
