"""One training step of every family on its real classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.models import live_zero
from support.pipelines import PIPELINES
from torch import Tensor

from svdiff_delta import attach
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import Handle
from svdiff_delta.svd.build import zero_delta
from svdiff_train.data import seeded_random
from svdiff_train.families import Family, family_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny
from svdiff_train.training.loss import denoising_loss

PROMPTS = ["a photo of a cat", "a house"]


def batch(family: Family, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and timesteps of two random pictures."""
    images = seeded_random.noise((2, 3, height, width), 0, 0, 0, "pictures").clamp(-1, 1)
    shape = (2, *family.latent_shape(height, width))
    latents = family.sample_latents(family.encode_images(images), seeded_random.noise(shape, 0, 0, 0, "posterior"))
    timesteps = torch.stack(
        [family.draw_timestep(seeded_random.generator(0, 0, sample, "time")) for sample in range(2)]
    )
    return latents, seeded_random.noise(shape, 0, 0, 0), timesteps


def step(family: Family, height: int = 16, width: int = 24) -> Tensor:
    """The loss of one step on pictures that are not square."""
    latents, noise, timesteps = batch(family, height, width)
    noised, target = family.noised(latents, noise, timesteps)
    prediction = family.predict(family.denoiser, noised, timesteps, family.encode_prompts(PROMPTS))
    assert prediction.shape == noised.shape == target.shape == latents.shape
    weights = family.loss_weights(timesteps, None)
    return (weights * denoising_loss(prediction, target)).mean()


def gradients(handle: Handle) -> Mapping[str, Tensor]:
    return {name: parameter.grad for name, parameter in handle.parameters() if parameter.grad is not None}


def attached(pipeline: Any, slot: str) -> Handle:
    zero: Delta = live_zero(getattr(pipeline, slot), slot=slot)
    return attach(pipeline, zero, trainable=True)


@pytest.mark.parametrize("name", PIPELINES)
def test_one_step_gives_the_shifts_their_gradients(name: str) -> None:
    family = family_of(PIPELINES[name]())
    with attached(family.pipeline, family.slot) as handle:
        step(family).backward()
        found = gradients(handle)
    assert found
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert sum(bool(gradient.any()) for gradient in found.values()) > 0.9 * len(found)


def test_one_step_of_the_embedded_base_gives_every_shift_a_gradient() -> None:
    base = open_tiny()
    pipeline: Any = load_pipeline(base)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    family = family_of(pipeline)
    with attach(pipeline, zero_delta(base, "unet"), base=base, trainable=True) as handle:
        step(family, family.resolution, family.resolution).backward()
        found = gradients(handle)
    assert len(found) == len(zero_delta(base, "unet"))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", PIPELINES)
def test_gradients_reach_every_text_encoder(name: str) -> None:
    family = family_of(PIPELINES[name]())
    for slot in family.text_slots:
        with attached(family.pipeline, slot) as handle:
            step(family).backward()
            assert any(gradient.any() for gradient in gradients(handle).values()), slot


def test_the_text_encoders_are_those_that_are_there() -> None:
    found = {name: family_of(build()).text_slots for name, build in PIPELINES.items()}
    assert found == {
        "sd2": ("text_encoder",),
        "sdxl": ("text_encoder", "text_encoder_2"),
        "sd3": ("text_encoder", "text_encoder_2", "text_encoder_3"),
        "sd3.5 without t5": ("text_encoder", "text_encoder_2"),
        "flux": ("text_encoder", "text_encoder_2"),
        "flux without guidance": ("text_encoder", "text_encoder_2"),
    }
