"""Tell before a run what memory it needs, part by part, and what there is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.runtime.modules import layer, live_keys
from svdiff_delta.runtime.quantized import quantized_weight
from svdiff_delta.runtime.quantized.weight import QuantizedWeight
from svdiff_train.data.buckets import Size
from svdiff_train.data.pairs import MASKS
from svdiff_train.data.seeded_random import generator
from svdiff_train.families import Conditioning, Family
from svdiff_train.families.experts import draw_for
from svdiff_train.settings.config import TrainConfig

from .known_values import known_values, let_known
from .stand_ins import StandIn, stand_in
from .storages import Storages

GB: Final = 10**9

PROGRAM: Final = 650 * 10**6
"""Bytes of torch, diffusers and transformers themselves in a process on the CPU; a card holds nothing of them."""

COPIES: Final = 7
"""float32 numbers for each one that is trained: itself, its gradient, Adam's two moments, and what was good last."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs at the peak of a step, in bytes of one process.

    Attributes:
        device: where.
        model: the weights of all models that stay.
        factors: what is held for δ beside them; less than nothing where factors stand for more than they take.
        trained: δ, its gradient, the optimizer's memory, and the copies of what was good last.
        activations: the most that a step needs besides; None if that cannot be told.
        program: of the libraries themselves.
        available: what there is, with what this process has already; None where the system does not say.
        unknown: why activations cannot be told.
    """

    device: str
    model: int
    factors: int
    trained: int
    activations: int | None
    program: int
    available: int | None
    unknown: str = ""

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.factors + self.trained + (self.activations or 0) + self.program

    def lines(self, mend: str) -> Iterator[str]:
        """Yield what a person should read of it.

        Args:
            mend: what could be set to need less.
        """
        parts = {"model": self.model, "factors": self.factors, "δ and optimizer": self.trained}
        if self.activations is not None:
            parts["activations"] = self.activations
        if self.program:
            parts["program"] = self.program
        listed = ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items())
        there = "" if self.available is None else f" of {self.available / GB:.2f} GB on the {self.device.upper()}"
        lacks = f"; activations cannot be told ({self.unknown})" if self.unknown else ""
        yield f"memory: {self.total / GB:.2f} GB at the peak of a step ({listed}){there}{lacks}"
        if self.available is not None and self.total > self.available:
            yield f"note: that is more than there is: {mend}"

    def facts(self) -> dict[str, Any]:
        """Return the numbers, for machines."""
        names = ("model", "factors", "trained", "activations", "program", "available", "total")
        return {"device": self.device} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Step:
    """What a step computes on.

    Attributes:
        family: of the live pipeline, on whatever device.
        config: of the run.
        size: height and width of the largest pictures.
        told: what the denoiser is told about one prompt.
        samples: how many go through the denoiser at a time.
    """

    family: Family
    config: TrainConfig
    size: Size
    told: Conditioning
    samples: int


def plan_memory(
    family: Family,
    base: Base,
    config: TrainConfig,
    selectors: tuple[str, ...],
    size: Size,
    device: torch.device,
    *,
    processes: int = 1,
    cast: torch.dtype | None = None,
) -> MemoryPlan | None:
    """Return what a run needs; None for methods other than svdiff.

    Args:
        family: of the live pipeline, with nothing on it yet.
        base: the opened base.
        config: of the run.
        selectors: what is trained.
        size: height and width of the largest pictures, in pixels.
        device: where it is going to run.
        processes: how many share out the denoiser's weights.
        cast: what operations are cast to; None if nothing is.
    """
    if config.method != "svdiff":
        return None
    places = _places(family, base, selectors, config, kept=processes > 1)
    numbers = sum(place.numbers for place in places.values())
    with torch.no_grad():
        told = family.encode_prompts([config.subjects()[0].prompt])
    step = Step(family, config, size, told, config.batch * (2 if config.with_prior else 1))
    activations, unknown = None, ""
    try:
        activations = step_bytes(step, places, device, cast)
    except Exception as error:  # noqa: BLE001 - whatever an unknown model does: a plan must not end a run
        unknown = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return MemoryPlan(
        device=device.type,
        model=_model_bytes(family, config, processes),
        factors=sum(place.held for place in places.values()),
        trained=4 * numbers * (COPIES + 2 * config.use_ema),
        activations=activations,
        program=PROGRAM if device.type == "cpu" else 0,
        available=available(device),
        unknown=unknown,
    )


def _places(
    family: Family, base: Base, selectors: tuple[str, ...], config: TrainConfig, *, kept: bool
) -> dict[str, StandIn]:
    names = choose_kinds(base, selectors, allow_missing=config.allow_missing)
    models = {slot: part for slot, part in family.pipeline.components.items() if isinstance(part, nn.Module)}
    keys = live_keys(models, base, {name.partition(".")[0] for name in names})
    return {
        name: StandIn.of(name, layer(models, name, keys), kind, tuple(base.shape(name)), kept=kept)
        for name, kind in names.items()
    }


def _model_bytes(family: Family, config: TrainConfig, processes: int) -> int:
    """Return the bytes of the weights that stay: a process's part of the denoiser, and the others unless they go."""
    released = {*(family.text_slots if config.pre_compute_text_embeddings else ()), *(["vae"] * config.cache_latents)}
    total = 0
    for slot, part in family.pipeline.components.items():
        if isinstance(part, nn.Module) and slot not in released:
            size = weight_bytes(part)
            total += size // processes if slot in family.slots else size
    return total


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights as they are stored, quantized ones in their own format."""
    packed = {id(module._parameters["weight"]): found for module, found in _quantized(model)}
    plain = (each.nbytes for each in (*model.parameters(), *model.buffers()) if id(each) not in packed)
    return sum(plain) + sum(found.nbytes for found in packed.values())


def _quantized(model: nn.Module) -> Iterator[tuple[nn.Module, QuantizedWeight]]:
    for module in model.modules():
        if (found := quantized_weight(module)) is not None:
            yield module, found


def step_bytes(step: Step, places: Mapping[str, StandIn], device: torch.device, cast: torch.dtype | None) -> int:
    """Return the most bytes that a forward and its way back need beside weights, factors and δ.

    Both are done on tensors without values, by the very code that trains, so that what autograd keeps is counted.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, live = step.config, step.family.denoiser
    family = copy.copy(step.family)  # what it keeps from call to call, the run must not find there
    family.__dict__.update({name: dict(each) for name, each in vars(family).items() if type(each) is dict})
    shape = (step.samples, *family.latent_shape(*step.size))
    family.settle(torch.zeros(shape, device=device), family.join([step.told] * step.samples))
    draw_for(family, {name.partition(".")[0] for name in places})
    drawn = torch.stack([family.draw_timestep(generator(config.seed, 0, i, "timestep")) for i in range(step.samples)])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autograd.set_multithreading_enabled(False):
        model, found = _twin(live, device)
        inside = [place for name, place in places.items() if name.partition(".")[0] in family.slots]
        held = stand_in((replace(place, module=found[id(place.module)]) for place in inside), device)
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        seen = {**step.told, **_seen(family, config, step.size)}
        told = {name: _rows(each, step.samples, device) for name, each in seen.items()}
        noised, timesteps = torch.empty(shape, device=device), torch.empty(step.samples, device=device)
        let_known(timesteps, drawn)
        told["sizes"] = torch.empty(step.samples, 6, device=device)
        known = [*model.parameters(), *model.buffers(), *held, *told.values(), noised, timesteps]
        counted = Storages(known)
        with known_values(device), counted:
            with torch.autocast(device.type, cast or torch.bfloat16, enabled=cast is not None):
                prediction = family.predict(model, noised, timesteps, told)
            prediction.float().square().mean().backward()
    return counted.most


def _twin(model: nn.Module, device: torch.device) -> tuple[nn.Module, dict[int, Any]]:
    """Return a copy of a model without values on a device, and its parts by the identities of the model's own."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    found: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        found[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    for module, stored in _quantized(model):  # it computes as an ordinary layer whose weight nobody keeps
        rows, columns = stored.shape
        bias = getattr(module, "bias", None) is not None
        found[id(module)] = nn.Linear(columns, rows, bias, device, stored.dtype).requires_grad_(False)
    with unset_fake_temporarily():  # tables of positions and the like, which are small, keep their values
        return copy.deepcopy(model, found), found


def _seen(family: Family, config: TrainConfig, size: Size) -> Conditioning:
    """Return what the denoiser is told about what belongs to a picture beside it; nothing where nothing does."""
    if family.companion is None:
        return {}
    pixels = torch.empty(1, 3, *size)
    return family.see(pixels, pixels[:, :1] if family.companion == MASKS else pixels, config.subjects()[0].prompt)


def _rows(tensor: Tensor, count: int, device: torch.device) -> Tensor:
    """Return a tensor without values for a batch; a mask's are known."""
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

    found = torch.empty((tensor.shape[0] * count, *tensor.shape[1:]), dtype=tensor.dtype, device=device)
    if isinstance(tensor, FakeTensor) or tensor.is_floating_point():
        return found
    with unset_fake_temporarily():
        return let_known(found, tensor.repeat_interleave(count, 0))


def available(device: torch.device) -> int | None:
    """Return the bytes of a device that this process may have, with those that it has; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    return _machine()


def _machine() -> int | None:
    """Return what Linux says is available, with what this process has."""
    try:
        lines = [*Path("/proc/meminfo").read_text().splitlines(), *Path("/proc/self/status").read_text().splitlines()]
    except OSError:  # another system
        return None
    said = {name: text.split() for name, _, text in (line.partition(":") for line in lines)}
    return 1024 * (int(said["MemAvailable"][0]) + int(said["RssAnon"][0]))
