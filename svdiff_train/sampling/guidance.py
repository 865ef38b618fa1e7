"""Guidance as a pipeline's own signature has it: classifier-free, distilled, or both beside each other."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from svdiff_delta.errors import InputError

if TYPE_CHECKING:
    from .sample import Sampling

TRUE: Final = "true_cfg_scale"
"""What pipelines call the scale of classifier-free guidance where `guidance_scale` is something else."""

USUAL: Final = 7.5
"""The scale for the families below where nothing is said."""

FIRST: Final = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")


def parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call."""
    return inspect.signature(pipeline.__call__).parameters


def has_both(pipeline: Any) -> bool:
    """Tell whether a pipeline knows classifier-free guidance beside what its model is told of guidance."""
    return TRUE in parameters(pipeline) and not is_true_only(pipeline)


def is_true_only(pipeline: Any) -> bool:
    """Tell whether the only guidance that acts is the one called `true_cfg_scale`, as of Qwen-Image."""
    taken = parameters(pipeline)
    if TRUE not in taken:
        return False
    distilled = getattr(getattr(getattr(pipeline, "transformer", None), "config", None), "guidance_embeds", False)
    return "guidance_scale" not in taken or (taken["guidance_scale"].default is None and not distilled)


def own_guidance(pipeline: Any) -> float:
    """Return the scale of guidance that a pipeline takes where nothing is said."""
    if type(pipeline).__name__ in FIRST:
        return USUAL
    taken = parameters(pipeline)
    name = TRUE if is_true_only(pipeline) else "guidance_scale"
    default = taken[name].default if name in taken else None
    return float(default) if isinstance(default, int | float) else USUAL


def scale_of(pipeline: Any, sampling: Sampling) -> float:
    """Return the scale of guidance that a pipeline samples with."""
    return own_guidance(pipeline) if sampling.guidance is None else sampling.guidance


def check_guidance(pipeline: Any, sampling: Sampling) -> None:
    """Check that a pipeline has the guidance that is asked for.

    Raises:
        InputError: it reads no negative prompt, or has no true guidance beside a distilled one.
    """
    name, taken = type(pipeline).__name__, parameters(pipeline)
    if sampling.true_cfg_scale is not None and not has_both(pipeline):
        raise InputError(f"{name}: has no {TRUE} beside its guidance", fix="say it as `guidance`")
    if not sampling.negative_prompt:
        return
    if "negative_prompt" not in taken:
        raise InputError(f"{name}: its guidance is distilled and knows no negative prompt", fix="leave it out")
    if has_both(pipeline) and (sampling.true_cfg_scale or 0) <= 1:
        raise InputError(
            f"{name}: its guidance is distilled and knows no negative prompt",
            fix="leave it out, or give a `true_cfg_scale` above 1",
        )


def guided(pipeline: Any, sampling: Sampling, count: int) -> dict[str, Any]:
    """Return the arguments that guide a pipeline.

    Args:
        pipeline: the live pipeline.
        sampling: how it samples.
        count: prompts of the batch.
    """
    scale, taken = scale_of(pipeline, sampling), parameters(pipeline)
    given: dict[str, Any] = {}
    true = sampling.true_cfg_scale
    if is_true_only(pipeline):
        true = scale
    elif "guidance_scale" in taken:
        given["guidance_scale"] = scale
    if true is not None:
        given[TRUE] = true
    if sampling.negative_prompt is not None:
        given["negative_prompt"] = [sampling.negative_prompt] * count
    elif true is not None and true > 1:
        given["negative_prompt"] = [" "] * count  # without one, these pipelines guide nothing
    return given
