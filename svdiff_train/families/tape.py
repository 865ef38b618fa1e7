"""Let a pipeline run and write down what reaches its denoiser, its scheduler and its text encoders."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class _EnoughError(Exception):
    """Ends a run of a pipeline at the denoiser's door."""


@dataclass(frozen=True)
class Call:
    """One call of a denoiser.

    Attributes:
        slot: of the denoiser.
        arguments: by the names of its own parameters.
        output: what it gave; None if it was not run.
    """

    slot: str
    arguments: Mapping[str, Any]
    output: Any = None


@dataclass(frozen=True)
class Step:
    """One step of the scheduler: the prediction, the timestep and the latents that it was given."""

    prediction: Tensor
    timestep: Tensor
    latents: Tensor


@dataclass
class Tape:
    """What a run wrote down.

    Attributes:
        calls: of the denoisers, in order.
        steps: of the scheduler, in order.
        texts: the arguments of `encode_prompt` by its own names, and what it gave, in order.
    """

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    texts: list[tuple[dict[str, Any], tuple[Any, ...]]] = field(default_factory=list)


@torch.no_grad()
def play(
    pipeline: Any,
    slots: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    texts: tuple[Any, ...] | None = None,
    stop: bool = False,
) -> Tape:
    """Run a pipeline and return what was written down; the pipeline is as before.

    Args:
        pipeline: the live pipeline.
        slots: its denoisers.
        arguments: of its call.
        texts: what `encode_prompt` gives in place of reading prompts.
        stop: whether to end before the denoiser does anything.
    """
    tape = Tape()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.autocast("cuda", enabled=False))
        stack.enter_context(_scheduler(pipeline, tape))
        stack.enter_context(_encoder(pipeline, tape, texts))
        if texts is not None:  # what reads prompts may be gone, and is not where the pipeline computes then
            stack.enter_context(_computing_on(pipeline, next(getattr(pipeline, slots[0]).parameters()).device))
        for slot in slots:
            stack.enter_context(_denoiser(getattr(pipeline, slot), slot, tape, stop=stop))
        stack.enter_context(_quiet(pipeline))
        with suppress(_EnoughError):
            pipeline(**arguments)
    return tape


@contextmanager
def _quiet(pipeline: Any) -> Iterator[None]:
    """Let a pipeline show no progress."""
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is not None:
            pipeline._progress_bar_config = before


@contextmanager
def _computing_on(pipeline: Any, device: torch.device) -> Iterator[None]:
    """Let a pipeline compute on a device, wherever its first model is."""
    own = type(pipeline)
    members = {"__module__": own.__module__, "__doc__": own.__doc__, "device": device, "_execution_device": device}
    pipeline.__class__ = type(own.__name__, (own,), members)
    try:
        yield
    finally:
        pipeline.__class__ = own


@contextmanager
def _scheduler(pipeline: Any, tape: Tape) -> Iterator[None]:
    """Put a copy of the scheduler in its place, which writes down its steps."""
    own = pipeline.scheduler
    watched = copy.deepcopy(own)
    step = watched.step

    def write(prediction: Tensor, timestep: Any, latents: Tensor, *args: Any, **given: Any) -> Any:
        tape.steps.append(Step(prediction.clone(), torch.as_tensor(timestep), latents.clone()))
        return step(prediction, timestep, latents, *args, **given)

    watched.step = write
    pipeline.scheduler = watched
    try:
        yield
    finally:
        pipeline.scheduler = own


@contextmanager
def _encoder(pipeline: Any, tape: Tape, texts: tuple[Any, ...] | None) -> Iterator[None]:
    """Write down what `encode_prompt` is given and gives, or give something else in its place."""
    own = pipeline.encode_prompt
    names = inspect.signature(own)

    def write(*args: Any, **given: Any) -> Any:
        found = own(*args, **given) if texts is None else texts
        whole = found if isinstance(found, tuple) else (found,)
        tape.texts.append((dict(names.bind(*args, **given).arguments), whole))
        return found

    pipeline.encode_prompt = write
    try:
        yield
    finally:
        del pipeline.encode_prompt


@contextmanager
def _denoiser(module: nn.Module, slot: str, tape: Tape, *, stop: bool) -> Iterator[None]:
    """Write down a denoiser's calls."""
    names = inspect.signature(type(module).forward)

    def arguments(args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
        return dict([*names.bind(module, *args, **given).arguments.items()][1:])

    def before(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        tape.calls.append(Call(slot, arguments(args, given)))
        raise _EnoughError

    def after(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        tape.calls.append(Call(slot, arguments(args, given), output))

    hook = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if stop
        else module.register_forward_hook(after, with_kwargs=True)
    )
    try:
        yield
    finally:
        hook.remove()
