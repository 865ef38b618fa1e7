"""What the recorded families are held against: their pipelines' own runs, and formulas written down by hand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from .recorded_pipelines import VIDEOS

PROMPT: Final = "a cat"

SIGNS: Final[Mapping[str, int]] = {"Z-Image": -1, "Lumina 2": -1, "HiDream": -1}
"""The sign that a family's pipeline gives its denoiser's output; all others leave it as it is."""

LISTED: Final = ("Z-Image",)
"""Families whose denoiser gives a list of samples with one frame each."""


@dataclass(frozen=True)
class Seen:
    """One step of a pipeline's own run.

    Attributes:
        slot: of the denoiser that ran.
        arguments: it was called with.
        prediction: that the scheduler was given.
        timestep: of the step.
        latents: before it.
    """

    slot: str
    arguments: Mapping[str, Any]
    prediction: Tensor
    timestep: Tensor
    latents: Tensor


def call_of(name: str, family: Any, steps: int, prompts: list[str], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call without any guidance."""
    taken = inspect.signature(family.pipeline.__call__).parameters
    height, width = (side * family.factor for side in shape[-2:])
    given: dict[str, Any] = {
        "prompt": prompts,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    if "guidance_scale" in taken and taken["guidance_scale"].default is not None:
        given["guidance_scale"] = 3.5 if name == "Flux.2 dev" else 0.0
    if "true_cfg_scale" in taken:
        given["true_cfg_scale"] = 1.0
    if name in VIDEOS:
        given["num_frames"] = (shape[-3] - 1) * family.frame_unit + 1
    if name == "SANA":
        given["use_resolution_binning"] = False
    return given


def watched(name: str, family: Any, steps: int, prompts: list[str], shape: tuple[int, ...]) -> list[Seen]:
    """Return the steps of a pipeline's own run, written down by hooks of the test's own."""
    pipeline, calls, found = family.pipeline, list[tuple[str, dict[str, Any]]](), list[Seen]()
    hooks = []
    for slot in ("transformer", "transformer_2"):
        module = getattr(pipeline, slot, None)
        if module is not None:
            names = [*inspect.signature(module.forward).parameters]

            def note(_: Any, args: Any, given: Any, slot: str = slot, names: list[str] = names) -> None:
                calls.append((slot, {**dict(zip(names, args, strict=False)), **given}))

            hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    step = type(pipeline.scheduler).step

    def stepping(prediction: Tensor, timestep: Any, latents: Tensor, *args: Any, **given: Any) -> Any:
        slot, arguments = calls[-1]
        found.append(Seen(slot, arguments, prediction.clone(), torch.as_tensor(timestep), latents.clone()))
        return step(pipeline.scheduler, prediction, timestep, latents, *args, **given)

    pipeline.scheduler.step = stepping
    try:
        with torch.no_grad():
            pipeline(**call_of(name, family, steps, prompts, shape))
    finally:
        del pipeline.scheduler.step
        for hook in hooks:
            hook.remove()
    return found


def velocity(name: str, pipeline: Any, seen: Seen) -> Tensor:
    """Return the velocity that a pipeline's denoiser gives with its own arguments; gradients flow."""
    arguments = {**seen.arguments, "return_dict": False}
    output = getattr(pipeline, seen.slot)(**arguments)[0]
    if name in LISTED:
        output = torch.stack(list(output)).squeeze(2)
    result: Tensor = SIGNS.get(name, 1) * output
    return result


def shape_of(name: str, family: Any) -> tuple[int, ...]:
    """Return the shape of small latents that are not square."""
    if name == "HiDream":
        return tuple(family.latent_shape(4 * family.factor, 16 * family.factor))  # as many pixels as it always paints
    sides = (3 * family.unit, 2 * family.unit)
    found = family.latent_shape(*sides, 1 + family.frame_unit) if name in VIDEOS else family.latent_shape(*sides)
    return tuple(found)
