"""Learning from a pipeline's own run how its denoiser is called: the places of latents, time and text, and the sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .tape import Call, Tape, play

Texts: TypeAlias = tuple[Any, ...]
"""What `encode_prompt` gives."""

TOLERANCE: Final = 1e-2
"""Of times and predictions, which pipelines round to the denoiser's dtype on the way."""


class UnclearError(Exception):
    """A recording does not tell something; the message says what."""


class Place(NamedTuple):
    """Where latents are.

    Attributes:
        argument: of the denoiser.
        dim: along which something else stands behind them; None if nothing does.
    """

    argument: str
    dim: int | None


class Time(NamedTuple):
    """How the scheduler's timestep t reaches the denoiser: argument = scale · t + offset."""

    argument: str
    scale: float
    offset: float


@dataclass(frozen=True)
class Recording:
    """What was learned.

    Attributes:
        latents: where the scheduler's latents go.
        time: how its timestep gets there.
        sign: of the denoiser's output, as the scheduler is given it.
        texts: what of `encode_prompt` reaches which argument unchanged, by number.
        prompted: arguments that depend on the prompt otherwise.
        asked: the arguments that the pipeline gives `encode_prompt`.
        constants: what `encode_prompt` gave, by number: what has no samples stays so.
    """

    latents: Place
    time: Time
    sign: int
    texts: Mapping[str, int]
    prompted: frozenset[str]
    asked: Mapping[str, Any]
    constants: Mapping[int, Any]


def learn(
    pipeline: Any,
    slots: Sequence[str],
    arguments: Mapping[str, Any],
    training_steps: int,
    masks: Mapping[int, int],
) -> Recording:
    """Let a pipeline run two steps, and once more to the denoiser's door with other text.

    Args:
        pipeline: the live pipeline.
        slots: its denoisers.
        arguments: of its call, for one prompt and two steps, without guidance by a second prediction.
        training_steps: the greatest timestep.
        masks: the places of masks among what `encode_prompt` gives, with those of what they mask; where nothing is
            masked, it may give none.

    Raises:
        UnclearError: it does not tell what training must know.
    """
    tape = play(pipeline, slots, arguments)
    if len(tape.calls) != len(tape.steps) or len(tape.steps) < 2 or len(tape.texts) != 1:
        raise UnclearError(
            f"{len(tape.calls)} calls of the denoiser, {len(tape.steps)} of `scheduler.step` and {len(tape.texts)} of "
            "`encode_prompt` in two steps, in place of 2, 2 and 1"
        )
    latents, time = find_latents(tape), find_time(tape, training_steps)
    sign = find_sign(tape)
    _check_steady(tape, {latents.argument, time.argument})
    asked, texts = tape.texts[0]
    whole = [
        torch.ones(texts[masks[index]].shape[:2], dtype=torch.bool) if value is None and index in masks else value
        for index, value in enumerate(texts)
    ]
    other = tuple(_perturbed(value, index) for index, value in enumerate(whole))
    call = play(pipeline, slots, arguments, texts=other, stop=True).calls[0]
    linked = find_texts(call, other)
    first = tape.calls[0].arguments
    prompted = {
        name
        for name, value in call.arguments.items()
        if name not in (latents.argument, time.argument, *linked) and not same(value, first[name])
    }
    constants = dict(enumerate(texts))
    return Recording(latents, time, sign, linked, frozenset(prompted), asked, constants)


def stacked(value: Any) -> Tensor | None:
    """Return a tensor, or a list of one tensor per sample as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
        return torch.stack(list(value)) if len({each.shape for each in value}) == 1 else None
    return None


def same(value: Any, other: Any) -> bool:
    """Tell whether two arguments are the same, whatever dtype their numbers have."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape and torch.equal(value.double(), other.double().to(value.device))
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(same(a, b) for a, b in zip(value, other, strict=True))
    return type(value) is type(other) and bool(value == other)


def find_latents(tape: Tape) -> Place:
    """Return the argument that holds the scheduler's latents, alone or before something else."""
    call, latents = tape.calls[0], tape.steps[0].latents
    found = [
        Place(name, dim) for name, value in call.arguments.items() for dim in _dims(stacked(value), latents, alone=True)
    ]
    if len(found) != 1:
        named = ", ".join(place.argument for place in found) or "no argument"
        raise UnclearError(f"the scheduler's latents {tuple(latents.shape)} are in {named} of the denoiser")
    return found[0]


def _dims(value: Tensor | None, latents: Tensor, *, alone: bool) -> list[int | None]:
    """Return how a value has latents in it: None if it is nothing else, or the dimension along which more follows."""
    if value is None or not value.is_floating_point() or value.numel() < latents.numel():
        return []
    exact = latents.to(value.device, value.dtype)
    if value.numel() == latents.numel() and value.shape[0] == latents.shape[0]:
        return [None] if torch.equal(value.flatten(), exact.flatten()) and alone else []
    if value.dim() != latents.dim():
        return []
    longer = [dim for dim in range(value.dim()) if value.shape[dim] != latents.shape[dim]]
    if len(longer) != 1 or longer[0] == 0:
        return []
    first = value.narrow(longer[0], 0, latents.shape[longer[0]])
    return [longer[0]] if torch.equal(first, exact) else []


def find_time(tape: Tape, training_steps: int) -> Time:
    """Return the argument that is t, t/N or 1 − t/N in all steps."""
    ways = ((1.0, 0.0), (1.0 / training_steps, 0.0), (-1.0 / training_steps, 1.0))
    times = [float(step.timestep.flatten()[0]) for step in tape.steps]
    found = [
        Time(name, *way)
        for name in tape.calls[0].arguments
        for way in ways
        if all(_is_time(call.arguments.get(name), way, t) for call, t in zip(tape.calls, times, strict=True))
    ]
    if len(found) != 1:
        named = ", ".join(time.argument for time in found) or "no argument"
        raise UnclearError(f"the scheduler's timesteps {times} reach the denoiser in {named} as t, t/N or 1 - t/N")
    return found[0]


def _is_time(value: Any, way: tuple[float, float], t: float) -> bool:
    if not isinstance(value, Tensor) or not value.numel() or value.dim() > 2 or value.dtype == torch.bool:
        return False
    scale, offset = way
    expected = torch.full(value.shape, scale * t + offset, dtype=torch.float64)
    return bool(torch.allclose(value.double().cpu(), expected, rtol=TOLERANCE, atol=TOLERANCE * abs(scale)))


def first_of(output: Any) -> Tensor:
    """Return a denoiser's prediction: of a tuple or an output the first, of a list all samples as one."""
    sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    found = stacked(sample)
    if found is None:
        raise UnclearError("the denoiser's output is no tensor, and no list of one for each sample")
    return found


def cut_to(found: Tensor, like: Tensor) -> Tensor | None:
    """Return a prediction in the shape of the scheduler's latents: what belongs to them comes first, if there is more.

    None if it is not so.
    """
    if found.numel() == like.numel():
        return found.reshape(like.shape)
    if found.dim() != like.dim():
        return None
    longer = [dim for dim in range(found.dim()) if found.shape[dim] != like.shape[dim]]
    if len(longer) != 1 or found.shape[longer[0]] < like.shape[longer[0]]:
        return None
    return found.narrow(longer[0], 0, like.shape[longer[0]])


def find_sign(tape: Tape) -> int:
    """Return 1 if the scheduler is given the denoiser's output, and −1 if its negative."""
    signs = {1, -1}
    for call, step in zip(tape.calls, tape.steps, strict=True):
        output = cut_to(first_of(call.output), step.prediction)
        if output is None:
            raise UnclearError("the denoiser's output has not the shape of the scheduler's latents")
        given, taken = step.prediction.double(), output.double()
        close = TOLERANCE * given.abs().max()
        signs &= {sign for sign in (1, -1) if bool((sign * taken - given).abs().max() <= close)}
    if len(signs) != 1:
        neither = "the scheduler is given neither the output nor its negative"
        what = "nothing else than 0 comes out" if signs else neither
        raise UnclearError(f"the sign of the denoiser's output: {what}")
    return signs.pop()


def find_texts(call: Call, texts: Texts) -> dict[str, int]:
    """Return which arguments are something that `encode_prompt` gave, by its number."""
    found = {}
    for name, value in call.arguments.items():
        numbers = [index for index, text in enumerate(texts) if _is_some(text) and same(value, text)]
        if numbers:
            found[name] = numbers[0]
    if not found:
        raise UnclearError("nothing that `encode_prompt` gave reaches the denoiser")
    return found


def _is_some(text: Any) -> bool:
    return isinstance(text, Tensor) or bool(isinstance(text, list | tuple) and text)


def _check_steady(tape: Tape, apart: set[str]) -> None:
    """Raise UnclearError if another argument is not the same in every step."""
    first, *others = tape.calls
    for call in others:
        changed = [
            name
            for name, value in call.arguments.items()
            if name not in apart and not same(value, first.arguments.get(name))
        ]
        if changed:
            raise UnclearError(f"{changed[0]} changes from step to step, and nothing says how")


def _perturbed(value: Any, seed: int) -> Any:
    """Return other text of the same shape: other numbers, and of masks the first half."""
    if isinstance(value, list | tuple):
        return type(value)([_perturbed(each, seed + index) for index, each in enumerate(value)])
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(seed + 1)
        return torch.randn(value.shape, generator=generator).to(value)
    half = torch.zeros_like(value)
    half[..., : max(1, value.shape[-1] // 2)] = 1
    return half
