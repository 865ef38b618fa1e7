"""Pictures from prompts and seeds, and labelled sheets of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite, lcm
from typing import Any, Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from svdiff_delta.errors import InputError
from svdiff_train.families import unit_of

from .black import check_black, noting_invalid
from .graphed_denoiser import GraphedDenoiser
from .guidance import check_guidance, guided, parameters
from .image_to_image import Initial, check_needed, image_to_image, initial
from .schedulers import make_scheduler, scheduled, takes_eta

GAP, MARGIN, FONT = 4, 6, 13


Start = Callable[[int, Tensor], Tensor]
"""From a job's number and its seed's noise (1, channels, height, width) to the latents that sampling starts from."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled.

    Attributes:
        steps: of denoising.
        guidance: scale of guidance, whichever the pipeline has: classifier-free guidance, of which 1 does without, or
            what a distilled model is told. None is 7.5 for Stable Diffusion and Flux.1, and what the pipeline itself
            takes for all others.
        true_cfg_scale: scale of classifier-free guidance beside a distilled one, where a pipeline has both; None does
            without.
        negative_prompt: what guidance leads away from; nothing if not given.
        batch_size: pictures that are painted at a time.
        scheduler: a class of diffusers, as `make_scheduler` takes it; None is DDIM, and the pipeline's own where that
            is flow matching.
        eta: η of DDIM, from 0 (the paper's: no noise on the way) to 1 (as much as DDPM).
        height: of the pictures, in pixels; the model's own if not given.
        width: likewise.
        num_frames: of clips; the pipeline's own if not given.
        strength: of the changes to an initial picture, from 0 to 1.
    """

    steps: int = 50
    guidance: float | None = 7.5
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    batch_size: int = 4
    scheduler: str | None = None
    eta: float = 0.0
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError("steps and batch size must be at least 1")
        for name in ("guidance", "true_cfg_scale"):
            value = getattr(self, name)
            if value is not None and not isfinite(value):
                raise InputError(f"{name} must be a finite number, is {value}")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"num_frames must be at least 1, is {self.num_frames}")
        if self.strength is not None and not 0.0 < self.strength <= 1.0:
            raise InputError(f"strength must be above 0 and at most 1, is {self.strength}")
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta must be within [0, 1], is {self.eta}")
        if (self.height is None) != (self.width is None):
            raise InputError("a size has a height and a width", fix="give both")
        scales = [scale for scale in (self.guidance, self.true_cfg_scale) if scale is not None]
        if self.negative_prompt and scales and max(scales) <= 1:
            raise InputError(
                f"a negative prompt does nothing at guidance {max(scales):g}", fix="raise the guidance above 1"
            )


def check_sampling(pipeline: Any, sampling: Sampling) -> None:
    """Check that a pipeline can sample so, before anything is painted.

    Raises:
        InputError: the scheduler does not go with it, η is not of that scheduler, the pipeline reads no negative
            prompt, has no guidance of that kind or makes no clips, or it cannot paint the size.
    """
    scheduler, taken = make_scheduler(pipeline, sampling.scheduler), parameters(pipeline)
    name = type(pipeline).__name__
    if sampling.eta > 0 and not ("eta" in taken and takes_eta(scheduler)):
        raise InputError(
            f"{type(scheduler).__name__} has no η, and eta is {sampling.eta:g}", fix="leave it out, or use DDIM"
        )
    check_guidance(pipeline, sampling)
    if sampling.num_frames is not None and not is_video(pipeline):
        raise InputError(f"{name}: num_frames is for models of moving pictures", fix="leave it out")
    unit = size_unit(pipeline)
    for side in (sampling.height, sampling.width):
        if side is not None and (side < unit or side % unit):
            raise InputError(f"the model cannot paint {side} pixels", fix=f"use multiples of {unit}")


def size_unit(pipeline: Any) -> int:
    """Return what sides of a pipeline's pictures are multiples of, in pixels."""
    unit = unit_of(pipeline)
    if unit is not None:
        return unit
    factor: int = next(getattr(pipeline, name) for name in FACTORS if hasattr(pipeline, name))
    return lcm(8, factor) if getattr(pipeline, "transformer", None) is None else 2 * factor


FACTORS: Final = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
"""What pipelines call the pixels of a latent's side."""


def is_video(pipeline: Any) -> bool:
    """Tell whether a pipeline makes clips, by its own signature."""
    return "num_frames" in parameters(pipeline)


def generate(
    pipeline: Any,
    jobs: Sequence[tuple[str, int]],
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
    *,
    start: Start | None = None,
    graphs: GraphedDenoiser | None = None,
    init: Initial | None = None,
    strict: bool = True,
) -> list[Any]:
    """Return one picture for each (prompt, seed), in order; a picture does not depend on what else is in its batch.

    Of a pipeline that makes clips, each is the list of its frames.

    Args:
        pipeline: a live text-to-image or text-to-video pipeline; it keeps its scheduler.
        jobs: prompts with seeds.
        sampling: how to sample.
        progress: called with pictures done and in all.
        start: makes the latents that sampling starts from of the noise that it would else start from; only for
            families with latents (channels, height, width), such as Stable Diffusion.
        graphs: runs this pipeline's denoiser; it goes on with what it has captured for other calls.
        init: what is painted from: the pipeline's image-to-image twin takes it, or the pipeline itself, if it edits
            pictures or fills in.
        strict: whether a picture that is black, since a number on its way was none, is an error, or a warning.

    Raises:
        TensorError: a picture is black for that reason.
        InputError: as `check_sampling`; or an initial picture is given and the pipeline takes none, or the other way
            round.
    """
    check_sampling(pipeline, sampling)
    if init is None:
        check_needed(pipeline)
    painter = pipeline if init is None else image_to_image(pipeline)
    size = 1 if init is not None else sampling.batch_size
    images: list[Any] = []
    with (
        scheduled(painter, sampling.scheduler),
        nullcontext() if graphs is None else graphs.running(),
        noting_invalid() as invalid,
    ):
        for first in range(0, len(jobs), size):
            chunk = jobs[first : first + size]
            given = _arguments(painter, chunk, sampling, start, first)
            if init is not None:
                given |= initial(painter, init, sampling, size_unit(pipeline))
            found = painter(**_taken(painter, given))
            images.extend(found.frames if hasattr(found, "frames") else found.images)
            if invalid:
                check_black(images[first:], chunk, strict=strict)
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
        "generator": generators,
        "eta": sampling.eta,
        **guided(pipeline, sampling, len(chunk)),
    }
    if is_video(pipeline):
        given["output_type"] = "pil"
    if sampling.num_frames is not None:
        given["num_frames"] = sampling.num_frames
    if sampling.height is not None:
        given |= {"height": sampling.height, "width": sampling.width}
    if start is not None:
        noises = [_noise(pipeline, sampling, generator) for generator in generators]
        given["latents"] = torch.cat([start(first + index, noise) for index, noise in enumerate(noises)])
    return given


def _taken(pipeline: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pipeline's call has a place for, of η and sizes; all else it must take."""
    known = parameters(pipeline)
    return {name: value for name, value in given.items() if name in known or name not in ("eta", "height", "width")}


def _noise(pipeline: Any, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return the noise (1, channels, height, width) that a pipeline would draw first, and leave the rest to draw."""
    factor, config = pipeline.vae_scale_factor, pipeline.unet.config
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    if sampling.height is not None and sampling.width is not None:
        height, width = sampling.height // factor, sampling.width // factor
    shape = (1, config.in_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=pipeline.text_encoder.dtype).to(pipeline.device)


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
