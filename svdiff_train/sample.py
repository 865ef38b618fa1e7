"""Pictures from prompts and seeds, and labelled sheets of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from svdiff_delta.errors import InputError

GAP, MARGIN, FONT = 4, 6, 13


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled; the scheduler is the pipeline's own, DDIM with η = 0 in the paper."""

    steps: int = 50
    guidance: float = 7.5
    negative_prompt: str | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError("steps and batch size must be at least 1")


def generate(
    pipeline: Any,
    jobs: Sequence[tuple[str, int]],
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """Return one picture for each (prompt, seed), in order; a picture does not depend on what else is in its batch.

    Args:
        pipeline: a live text-to-image pipeline.
        jobs: prompts with seeds.
        sampling: how to sample.
        progress: called with pictures done and in all.
    """
    images: list[Image.Image] = []
    for start in range(0, len(jobs), sampling.batch_size):
        chunk = jobs[start : start + sampling.batch_size]
        result = pipeline(
            [prompt for prompt, _ in chunk],
            negative_prompt=None if sampling.negative_prompt is None else [sampling.negative_prompt] * len(chunk),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=[torch.Generator().manual_seed(seed) for _, seed in chunk],
            eta=0.0,
        )
        images.extend(result.images)
        if progress is not None:
            progress(len(images), len(jobs))
    return images


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
    lines = [_wrap(label, font, width) for label in columns]
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


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
