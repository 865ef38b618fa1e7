"""Do training steps as CUDA graphs, one for each shape of batch; as they are where that cannot be, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from svdiff_train.data.batches import Batch

from .cuda_capture import Capture, CudaCapture
from .static_work import StaticWork
from .step import Stepper

MOST: Final = 8
"""How many graphs there are at most: each keeps the activations of its shape."""

TOLD: Final = "told."
"""Before the names of what the denoiser is told about prompts, among the names of inputs."""

Bucket = tuple[int, tuple[tuple[str, torch.Size, torch.dtype], ...]]


class GraphedStep:
    """Steps of a run, from the noised latents to the optimizer as one graph.

    What chance draws is drawn as ever, from hash(seed, step, sample) on the CPU, and is copied into buffers that stay;
    so a run with graphs is the run without. A shape is captured after a few steps of it, which count.

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
        batch = stepper.batches.batch(step, stepper.samples(0, 0))
        told = stepper.texts.conditioning(batch.prompts)
        inputs = {"latents": batch.latents, "noise": batch.noise, "timesteps": batch.timesteps, "sizes": batch.sizes}
        inputs |= {TOLD + name: value for name, value in told.items()}
        work = self._work_for(inputs, batch.subjects)
        if work is None:
            return stepper.finish(stepper.learn([replace(batch, told=told)]))
        result = work.run(inputs)
        if work.why is not None:
            self._tell(f"capturing one failed ({work.why})")
        return result

    def _work_for(self, inputs: Mapping[str, Tensor], subjects: int) -> StaticWork | None:
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

    def _learn(self, buffers: Mapping[str, Tensor], subjects: int) -> Tensor:
        """Do all of a step that is on the device."""
        latents, noise, timesteps, sizes = (buffers[name] for name in ("latents", "noise", "timesteps", "sizes"))
        told = {name.removeprefix(TOLD): value for name, value in buffers.items() if name.startswith(TOLD)}
        batch = Batch(latents, noise, timesteps, (), sizes, subjects, told=told)
        with _capturable(self._stepper.optimizer):
            return self._stepper.finish(self._stepper.learn([batch]))

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
        "gradients are accumulated": config.accumulate > 1,
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
