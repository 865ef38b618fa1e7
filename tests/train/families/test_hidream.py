"""HiDream's chosen experts, which diffusers computes without gradients outside of training."""

from __future__ import annotations

import pytest
import torch
from support.models import live_zero
from support.recorded_pipelines import shared
from support.recorded_truth import PROMPT, shape_of
from support.weights import normal

from svdiff_delta import attach
from svdiff_train.families import family_of
from svdiff_train.training.loss import denoising_loss

STEP = 1e-2
"""Of each shift, either way: large enough that float32's rounding of the loss is far below the difference."""


@pytest.mark.parametrize("part", ["experts", "before them"])
def test_the_gradient_is_the_slope_of_the_loss(part: str) -> None:
    family = family_of(shared("HiDream"))
    pipeline, shape = family.pipeline, shape_of("HiDream", family)
    told = family.join([family.encode_prompts([PROMPT])])
    latents, target = normal(1, *shape, seed=3), normal(1, *shape, seed=9)
    zero = live_zero(getattr(pipeline, family.slot), slot=family.slot)

    def loss() -> torch.Tensor:
        found = family.predict(family.denoiser, latents, torch.tensor([700.0]), told)
        return denoising_loss(found, target).double().sum()

    with attach(pipeline, zero, trainable=True) as handle:
        shifts = {
            name: shift
            for name, shift in handle.parameters()
            if (".ff_i.experts." in name) == (part == "experts") and (part == "experts" or "double" in name)
        }
        assert len(shifts) > 3
        gradients = torch.autograd.grad(loss(), list(shifts.values()), allow_unused=True)
        ways = [
            0 * shift if one is None else one / one.norm().clamp(1e-12)
            for shift, one in zip(shifts.values(), gradients, strict=True)
        ]
        slope = sum(
            float((one.double() * way.double()).sum())
            for one, way in zip(gradients, ways, strict=True)
            if one is not None
        )
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                for shift, way in zip(shifts.values(), ways, strict=True):
                    shift += sign * STEP * way
                ends.append(float(loss()))
                for shift, way in zip(shifts.values(), ways, strict=True):
                    shift -= sign * STEP * way
    assert slope > 0
    assert (ends[0] - ends[1]) / (2 * STEP) == pytest.approx(slope, rel=0.02)


def test_what_is_computed_with_gradients_is_what_is_painted() -> None:
    family = family_of(shared("HiDream"))
    latents = normal(1, *shape_of("HiDream", family), seed=3)
    told = family.join([family.encode_prompts([PROMPT])])
    recorded = family.predict(family.denoiser, latents, torch.tensor([700.0]), told).detach()
    with torch.no_grad():
        painted = family.predict(family.denoiser, latents, torch.tensor([700.0]), told)
    assert float((recorded - painted).abs().max()) <= 2e-5 * float(painted.abs().max())
