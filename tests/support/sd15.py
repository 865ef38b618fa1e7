"""Names and shapes of the weights of Stable Diffusion 1.5's UNet that SVDiff shifts, computed without torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.metadata import BaseInfo, Metadata

from .deltas import parameter

Shape = tuple[int, ...]
WIDTHS = (320, 640, 1280, 1280)
CONTEXT = 768
TIME = 1280
LATENTS = 4


def _resnet(path: str, inside: int, outside: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.norm1", (inside,)
    yield f"{path}.conv1", (outside, inside, 3, 3)
    yield f"{path}.time_emb_proj", (outside, TIME)
    yield f"{path}.norm2", (outside,)
    yield f"{path}.conv2", (outside, outside, 3, 3)
    if inside != outside:
        yield f"{path}.conv_shortcut", (outside, inside, 1, 1)


def _attention(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.norm", (width,)
    yield f"{path}.proj_in", (width, width, 1, 1)
    yield f"{path}.proj_out", (width, width, 1, 1)
    block = f"{path}.transformer_blocks.0"
    for norm in ("norm1", "norm2", "norm3"):
        yield f"{block}.{norm}", (width,)
    for attention, context in (("attn1", width), ("attn2", CONTEXT)):
        yield f"{block}.{attention}.to_q", (width, width)
        yield f"{block}.{attention}.to_k", (width, context)
        yield f"{block}.{attention}.to_v", (width, context)
        yield f"{block}.{attention}.to_out.0", (width, width)
    yield f"{block}.ff.net.0.proj", (8 * width, width)
    yield f"{block}.ff.net.2", (width, 4 * width)


def _down() -> Iterator[tuple[str, Shape]]:
    width = WIDTHS[0]
    for index, outside in enumerate(WIDTHS):
        for layer in range(2):
            yield from _resnet(f"down_blocks.{index}.resnets.{layer}", width, outside)
            width = outside
            if index < 3:
                yield from _attention(f"down_blocks.{index}.attentions.{layer}", width)
        if index < 3:
            yield f"down_blocks.{index}.downsamplers.0.conv", (width, width, 3, 3)


def _mid() -> Iterator[tuple[str, Shape]]:
    for layer in range(2):
        yield from _resnet(f"mid_block.resnets.{layer}", WIDTHS[-1], WIDTHS[-1])
    yield from _attention("mid_block.attentions.0", WIDTHS[-1])


def _up() -> Iterator[tuple[str, Shape]]:
    # What the way down left for the way up: conv_in, then the resnets and the downsampler of each block.
    skips = [WIDTHS[0]]
    for index, width in enumerate(WIDTHS):
        skips += [width] * (3 if index < 3 else 2)
    width = WIDTHS[-1]
    for index, outside in enumerate(reversed(WIDTHS)):
        for layer in range(3):
            yield from _resnet(f"up_blocks.{index}.resnets.{layer}", width + skips.pop(), outside)
            width = outside
            if index > 0:
                yield from _attention(f"up_blocks.{index}.attentions.{layer}", width)
        if index < 3:
            yield f"up_blocks.{index}.upsamplers.0.conv", (width, width, 3, 3)


def _layout() -> Iterator[tuple[str, Shape]]:
    yield "conv_in", (WIDTHS[0], LATENTS, 3, 3)
    yield "time_embedding.linear_1", (TIME, WIDTHS[0])
    yield "time_embedding.linear_2", (TIME, TIME)
    yield from _down()
    yield from _mid()
    yield from _up()
    yield "conv_norm_out", (WIDTHS[0],)
    yield "conv_out", (LATENTS, WIDTHS[0], 3, 3)


LAYOUT: dict[str, Shape] = {f"unet.{path}.weight": shape for path, shape in sorted(_layout())}
"""Shape by parameter name, in sorted-name order."""


def sd15_delta(seed: int = 0) -> Delta:
    """Return a random delta with that layout, and with all that a trained one says about itself."""
    draw = np.random.default_rng(seed)
    parameters = {name: parameter(*shape, seed=index) for index, (name, shape) in enumerate(LAYOUT.items())}
    base = BaseInfo(
        {"unet": "UNet2DConditionModel"},
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    )
    training = {
        "method": "svdiff",
        "prompt": "a photo of a V1 dog",
        "class_prompt": "a photo of a dog",
        "selectors": ["unet"],
        "steps": 500,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "learning_rate_1d": 1e-6,
        "weight_decay": 1e-2,
        "max_grad_norm": 1.0,
        "prior_weight": 1.0,
        "class_images": 200,
        "seed": seed,
        "mixed_precision": "no",
    }
    metadata = Metadata(base, parameters, training=training, modelspec={"title": f"Subject {seed}"})
    values = {name: draw.standard_normal(parameter.size) * 0.01 for name, parameter in parameters.items()}
    return Delta(values, metadata)
