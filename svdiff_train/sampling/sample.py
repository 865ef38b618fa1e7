"""Pictures from prompts and seeds, and labelled sheets of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, lcm
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from svdiff_delta.errors import InputError

from .schedulers import make_scheduler, scheduled, takes_eta

GAP, MARGIN, FONT = 4, 6, 13


Start = Callable[[int, Tensor], Tensor]
"""From a job's number and its seed's noise (1, channels, height, width) to the latents that sampling starts from."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled.

    Attributes:
        steps: of denoising.
        guidance: scale of classifier-free guidance; 1 does without.
        negative_prompt: what guidance leads away from; nothing if not given.
        batch_size: pictures that are painted at a time.
        scheduler: a class of diffusers, as `make_scheduler` takes it; None is DDIM, and the pipeline's own where that
            is flow matching.
        eta: η of DDIM, from 0 (the paper's: no noise on the way) to 1 (as much as DDPM).
        height: of the pictures, in pixels; the model's own if not given.
        width: likewise.
    """

    steps: int = 50
    guidance: float = 7.5
    negative_prompt: str | None = None
    batch_size: int = 4
    scheduler: str | None = None
    eta: float = 0.0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError("steps and batch size must be at least 1")
        if not isfinite(self.guidance):
            raise InputError(f"guidance must be a finite number, is {self.guidance}")
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta must be within [0, 1], is {self.eta}")
        if (self.height is None) != (self.width is None):
            raise InputError("a size has a height and a width", fix="give both")
        if self.negative_prompt and self.guidance <= 1:
            raise InputError(
                f"a negative prompt does nothing at guidance {self.guidance:g}", fix="raise the guidance above 1"
            )


def check_sampling(pipeline: Any, sampling: Sampling) -> None:
    """Check that a pipeline can sample so, before anything is painted.

    Raises:
        InputError: the scheduler does not go with it, η is not of that scheduler, the pipeline reads no negative
            prompt, or it cannot paint the size.
    """
    scheduler, taken = make_scheduler(pipeline, sampling.scheduler), _parameters(pipeline)
    if sampling.eta > 0 and not ("eta" in taken and takes_eta(scheduler)):
        raise InputError(
            f"{type(scheduler).__name__} has no η, and eta is {sampling.eta:g}", fix="leave it out, or use DDIM"
        )
    if sampling.negative_prompt and ("negative_prompt" not in taken or "true_cfg_scale" in taken):
        raise InputError(
            f"{type(pipeline).__name__}: its guidance is distilled and knows no negative prompt", fix="leave it out"
        )
    unit = size_unit(pipeline)
    for side in (sampling.height, sampling.width):
        if side is not None and (side < unit or side % unit):
            raise InputError(f"the model cannot paint {side} pixels", fix=f"use multiples of {unit}")


def size_unit(pipeline: Any) -> int:
    """Return what sides of a pipeline's pictures are multiples of, in pixels."""
    factor: int = pipeline.vae_scale_factor
    return lcm(8, factor) if getattr(pipeline, "transformer", None) is None else 2 * factor


def generate(
    pipeline: Any,
    jobs: Sequence[tuple[str, int]],
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
    *,
    start: Start | None = None,
) -> list[Image.Image]:
    """Return one picture for each (prompt, seed), in order; a picture does not depend on what else is in its batch.

    Args:
        pipeline: a live text-to-image pipeline; it keeps its scheduler.
        jobs: prompts with seeds.
        sampling: how to sample.
        progress: called with pictures done and in all.
        start: makes the latents that sampling starts from of the noise that it would else start from; only for
            families with latents (channels, height, width), such as Stable Diffusion.

    Raises:
        InputError: as `check_sampling`.
    """
    check_sampling(pipeline, sampling)
    images: list[Image.Image] = []
    with scheduled(pipeline, sampling.scheduler):
        for first in range(0, len(jobs), sampling.batch_size):
            chunk = jobs[first : first + sampling.batch_size]
            images.extend(pipeline(**_arguments(pipeline, chunk, sampling, start, first)).images)
            if progress is not None:
                progress(len(images), len(jobs))
    return images


def _arguments(
    pipeline: Any, chunk: Sequence[tuple[str, int]], sampling: Sampling, start: Start | None, first: int
) -> dict[str, Any]:
    """Return what a pipeline is called with for some jobs, of which the first has this number."""
    generators = [torch.Generator().manual_seed(seed) for _, seed in chunk]
    given: dict[str, Any] = {
        "prompt": [prompt for prompt, _ in chunk],
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "generator": generators,
    }
    if "eta" in _parameters(pipeline):
        given["eta"] = sampling.eta
    if sampling.negative_prompt is not None:
        given["negative_prompt"] = [sampling.negative_prompt] * len(chunk)
    if sampling.height is not None:
        given |= {"height": sampling.height, "width": sampling.width}
    if start is not None:
        noises = [_noise(pipeline, sampling, generator) for generator in generators]
        given["latents"] = torch.cat([start(first + index, noise) for index, noise in enumerate(noises)])
    return given


def _noise(pipeline: Any, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return the noise (1, channels, height, width) that a pipeline would draw first, and leave the rest to draw."""
    factor, config = pipeline.vae_scale_factor, pipeline.unet.config
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    if sampling.height is not None and sampling.width is not None:
        height, width = sampling.height // factor, sampling.width // factor
    shape = (1, config.in_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=pipeline.text_encoder.dtype).to(pipeline.device)


def _parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipeline.__call__).parameters


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], *, zoom: int = 1) -> Image.Image:
    """Return a labelled grid of pictures of one size.

    Args:
        rows: a label and its pictures, one per column.
        columns: the labels above.
        zoom: how many times to enlarge each picture.
    """
    font = ImageFont.load_default(FONT)
    width, height = (side * zoom for side in rows[0][1][0].size)
    left = 2 * MARGIN + max(int(font.getlength(label)) for label, _ in rows)
    lines = [wrap(label, font, width) for label in columns]
    top = MARGIN + (FONT + 3) * max(map(len, lines))
    canvas = Image.new("RGB", (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP)), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for column, texts in enumerate(lines):
        for line, text in enumerate(texts):
            draw.text((left + column * (width + GAP), MARGIN // 2 + line * (FONT + 3)), text, "black", font)
    for row, (label, images) in enumerate(rows):
        y = top + row * (height + GAP)
        draw.text((MARGIN, y + (height - FONT) // 2), label, "black", font)
        for column, image in enumerate(images):
            enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
            canvas.paste(enlarged, (left + column * (width + GAP), y))
    return canvas


def wrap(text: str, font: Any, width: float) -> list[str]:
    """Return the lines that a text takes at this width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
