"""Inversion and slerp against formulas of their own, and the way there and back on the embedded base."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.pipelines import SCHEDULE, small_flux, small_sd2, small_sd3, small_sdxl
from torch import Tensor

from svdiff_delta.errors import InputError
from svdiff_train.data import open_image
from svdiff_train.sampling.ddim_inversion import ddim_invert, diffusion_family, encode_image, slerp
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.schedulers import scheduled
from svdiff_train.tiny import open_tiny, pictures_path

PROMPT = "a photo of a cat"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(pipeline: Any, factor: float) -> list[int]:
    """Let the denoiser predict `factor` times what it is given; return the timesteps that it is asked at."""
    asked: list[int] = []

    def forward(sample: Tensor, timestep: Tensor, *given: Any, **more: Any) -> tuple[Tensor]:
        asked.append(int(timestep.flatten()[0]))
        return (factor * sample,)

    pipeline.unet.forward = forward
    return asked


def alphas(t: int) -> float:
    """ᾱ_t of SD's scaled linear schedule in float64; ᾱ_0 below 0."""
    start, end = SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5
    betas = np.linspace(start, end, 1000, dtype=np.float64) ** 2
    return float(np.cumprod(1 - betas)[max(t, 0)])


# -- Eq. 6


@pytest.mark.parametrize("steps", [1, 5])
def test_a_linear_denoiser_of_noise_is_inverted_as_the_product_of_its_steps(steps: int) -> None:
    pipeline = small_sd2(prediction_type="epsilon")
    asked = linear(pipeline, 0.3)
    z, wanted, times = normal(2, 4, 8, 8), 1.0, [1 + index * (1000 // steps) for index in range(steps)]
    for t in times:
        s = t - 1000 // steps
        root, noise = math.sqrt(alphas(t) / alphas(s)), math.sqrt(1 - alphas(t))
        wanted *= root + 0.3 * (noise - math.sqrt(1 - alphas(s)) * root)
    torch.testing.assert_close(ddim_invert(pipeline, z, PROMPT, steps), wanted * z, rtol=1e-5, atol=1e-6)
    assert asked == times


def test_a_linear_denoiser_of_velocity_is_inverted_as_the_product_of_its_steps() -> None:
    """On the circle of (√ᾱ, √(1 − ᾱ)) a step turns z by an angle: z_s = cos θ z_t − sin θ v."""
    pipeline = small_sd2(prediction_type="v_prediction")
    linear(pipeline, 0.3)
    z, wanted = normal(1, 4, 8, 8), 1.0
    for t in (1, 201, 401, 601, 801):
        angle = math.acos(math.sqrt(alphas(t))) - math.acos(math.sqrt(alphas(t - 200)))
        wanted *= (1 + 0.3 * math.sin(angle)) / math.cos(angle)
    torch.testing.assert_close(ddim_invert(pipeline, z, PROMPT, 5), wanted * z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_prediction_that_does_not_depend_on_z_is_inverted_exactly(kind: str) -> None:
    pipeline = small_sd2(prediction_type=kind)
    constant = normal(1, 4, 8, 8, seed=5)
    pipeline.unet.forward = lambda sample, timestep, *given, **more: (constant.expand_as(sample),)
    z = normal(1, 4, 8, 8)
    inverted = ddim_invert(pipeline, z, PROMPT, 4)
    back = pipeline(PROMPT, latents=inverted, num_inference_steps=4, guidance_scale=1.0, output_type="latent").images
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-4)


def test_guidance_mixes_predictions_with_and_without_the_prompt() -> None:
    pipeline = small_sd2(prediction_type="epsilon")
    texts = {text: pipeline.encode_prompt([text], "cpu", 1, False)[0] for text in (PROMPT, "blue")}

    def forward(sample: Tensor, timestep: Tensor, states: Tensor, **more: Any) -> tuple[Tensor]:
        (text,) = (text for text, known in texts.items() if torch.equal(states, known))
        return (torch.full_like(sample, {PROMPT: 1.0, "blue": 0.25}[text]),)

    pipeline.unet.forward = forward
    found = ddim_invert(pipeline, torch.zeros(1, 4, 8, 8), PROMPT, 1, 3.0, negative_prompt="blue")
    root, noise = math.sqrt(alphas(1) / alphas(0)), math.sqrt(1 - alphas(1))
    wanted = (0.25 + 3.0 * 0.75) * (noise - math.sqrt(1 - alphas(0)) * root)
    torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_there_and_back_the_error_falls_as_one_over_the_steps() -> None:
    pipeline: Any = load_pipeline(open_tiny())
    picture = open_image(sorted(pictures_path("black_cat").glob("*.*"))[0])
    z = encode_image(pipeline, picture)
    errors = []
    for steps in (10, 20, 40):
        there = ddim_invert(pipeline, z, PROMPT, steps)
        with scheduled(pipeline):
            back = pipeline(
                PROMPT, latents=there, num_inference_steps=steps, guidance_scale=1.0, output_type="latent"
            ).images
        errors.append(float((back - z).norm() / z.norm()))
    assert errors[0] < 0.5
    # Twice the steps, about half the error.
    for more, fewer in pairwise(errors):
        assert 1.4 < more / fewer < 2.8, errors


def test_sdxl_is_inverted_with_what_else_its_denoiser_is_told() -> None:
    found = ddim_invert(small_sdxl(), normal(2, 4, 8, 8), ["a cat", "a dog"], 2)
    assert found.shape == (2, 4, 8, 8)
    assert torch.isfinite(found).all()


def test_embeddings_stand_for_their_prompt() -> None:
    pipeline = small_sd2()
    z = normal(1, 4, 8, 8)
    given = diffusion_family(pipeline).encode_prompts([PROMPT])
    assert torch.equal(ddim_invert(pipeline, z, given, 2), ddim_invert(pipeline, z, PROMPT, 2))


def test_prompts_are_as_many_as_latents() -> None:
    with pytest.raises(InputError, match="3 latents need as many prompts, 2 were given"):
        ddim_invert(small_sd2(), normal(3, 4, 8, 8), ["a", "b"], 1)


@pytest.mark.parametrize("build", [small_sd3, small_flux])
def test_flow_matching_is_not_inverted(build: Any) -> None:
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler is not made for diffusion"):
        ddim_invert(build(), normal(1, 4, 8, 8), PROMPT, 1)


def test_a_denoiser_of_the_picture_itself_is_not_inverted() -> None:
    with pytest.raises(InputError, match="predicts 'sample'"):
        ddim_invert(small_sd2(prediction_type="sample"), normal(1, 4, 8, 8), PROMPT, 1)


def test_a_picture_is_encoded_as_the_mean_of_its_latents() -> None:
    pipeline: Any = load_pipeline(open_tiny())
    image = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 30).convert("RGB")
    cut = np.asarray(image.crop((16, 0, 80, 64)), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        mean = pipeline.vae.encode(torch.from_numpy(cut)[None]).latent_dist.mean
    wanted = mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(encode_image(pipeline, image), wanted, rtol=1e-5, atol=1e-5)
    assert encode_image(pipeline, image, size=(32, 48)).shape == (1, mean.shape[1], 8, 12)


# -- Eq. 7


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_slerp_is_equation_7(alpha: float) -> None:
    z, noise = normal(3, 4, 5), normal(3, 4, 5, seed=1) * 1.7
    found = slerp(alpha, z, noise)
    for one, a, b in zip(found, z.double().numpy(), noise.double().numpy(), strict=True):
        phi = math.acos((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))
        wanted = math.sin((1 - alpha) * phi) / math.sin(phi) * a + math.sin(alpha * phi) / math.sin(phi) * b
        np.testing.assert_allclose(one.numpy(), wanted, rtol=2e-6, atol=1e-7)


def test_slerp_keeps_the_norm_of_vectors_of_one_norm() -> None:
    z, noise = (normal(2, 64, seed=seed).double() for seed in (0, 1))
    noise *= z.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    for alpha in (0.25, 0.5, 0.75):
        torch.testing.assert_close(slerp(alpha, z, noise).norm(dim=1), z.norm(dim=1), rtol=1e-12, atol=0)


def test_slerp_ends_exactly() -> None:
    z, noise = normal(2, 9), normal(2, 9, seed=1)
    assert torch.equal(slerp(0.0, z, noise), z)
    assert torch.equal(slerp(1.0, z, noise), noise)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.0])
def test_slerp_of_parallel_vectors_is_the_straight_way(factor: float) -> None:
    z = normal(1, 9).double()
    torch.testing.assert_close(slerp(0.25, z, factor * z), (0.75 + 0.25 * factor) * z, rtol=1e-12, atol=0)


def test_slerp_of_nearly_parallel_vectors_stays_between_them() -> None:
    z = normal(1, 9).double()
    other = z + 1e-9 * normal(1, 9, seed=1)
    torch.testing.assert_close(slerp(0.5, z, other), (z + other) / 2, rtol=1e-12, atol=1e-14)


def test_slerp_refuses_what_it_cannot_mix() -> None:
    with pytest.raises(InputError, match="alpha must be within"):
        slerp(1.5, normal(1, 2), normal(1, 2))
    with pytest.raises(InputError, match=r"have shape \[1, 2\], the noise \[1, 3\]"):
        slerp(0.5, normal(1, 2), normal(1, 3))
