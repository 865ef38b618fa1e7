"""Calibration on prompts: what the layers of a pipeline meet while it paints (spec, section 7.12)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from svdiff_delta.errors import InputError
from svdiff_delta.runtime import measure
from svdiff_delta.svd.calibration import Calibration, Moments, Probe

GUIDANCE: Final = 7.5
"""Classifier-free guidance while painting, so that layers meet both what prompts and what no prompt gives them."""

BATCH: Final = 4
"""Prompts that are painted at a time."""


def digest_lines(lines: Sequence[str]) -> str:
    """Return the SHA-256 of lines, joined by U+000A."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def calibration_on(load: Callable[[], Any], prompts: Sequence[str], *, steps: int = 20) -> Calibration:
    """Return the calibration on what a pipeline's layers meet while it paints some prompts.

    Prompt i is painted from seed i, so that a second run meets the same.

    Args:
        load: returns the base as a live text-to-image pipeline, when it is needed.
        prompts: what to paint.
        steps: denoising steps of each picture.

    Raises:
        InputError: there is no prompt or no step.
    """
    if not prompts or steps < 1:
        raise InputError("calibration needs at least 1 prompt and 1 step")
    facts = {"prompts": len(prompts), "sha256": digest_lines(prompts), "steps": steps}
    return Calibration(lambda probes: collect(load(), prompts, probes, steps=steps), facts)


def collect(
    pipeline: Any, prompts: Sequence[str], probes: Mapping[str, Probe], *, steps: int = 20
) -> dict[str, Moments]:
    """Return the moments of what layers of a pipeline meet while it paints some prompts.

    Args:
        pipeline: a live text-to-image pipeline; it stays as it is.
        prompts: what to paint.
        probes: the layers, by parameter name.
        steps: denoising steps of each picture.

    Raises:
        AttachError: the pipeline has no such layer.
    """
    whole = any(name.startswith("vae.") for name in probes)  # else the picture itself is not needed

    def paint() -> None:
        for start in range(0, len(prompts), BATCH):
            chunk = list(prompts[start : start + BATCH])
            pipeline(
                chunk,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator().manual_seed(start + index) for index in range(len(chunk))],
                output_type="pt" if whole else "latent",
            )

    return measure(pipeline, probes, paint)
