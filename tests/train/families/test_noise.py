"""Noise, targets, timesteps and weights of every family against formulas of their own in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.pipelines import PIPELINES, small_flux, small_sd2, small_sd3, small_sdxl
from torch import Tensor

from svdiff_delta.errors import TrainError
from svdiff_train.data import seeded_random
from svdiff_train.families import Family, family_of

STEPS = 1000
TIMES = torch.tensor([0, 17, 500, 999])


def alphas() -> np.ndarray[Any, np.dtype[np.float64]]:
    """ᾱ_t of Stable Diffusion: betas whose roots are evenly spaced from √0.00085 to √0.012."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2)


def latents_and_noise(family: Family) -> tuple[Tensor, Tensor]:
    shape = (4, *family.latent_shape(16, 24))
    return seeded_random.noise(shape, 0, 0, 0, "latents"), seeded_random.noise(shape, 0, 0, 1, "noise")


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> bool:
    """Whether float32 numbers are those of a float64 formula; sums of two products round three times."""
    return bool((found.double() - expected).abs().max() <= tolerance * expected.abs().max())


def column(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


# --- Diffusion ---


@pytest.mark.parametrize("build", [small_sd2, small_sdxl])
def test_diffusion_adds_noise_by_its_schedule(build: Any) -> None:
    family = family_of(build())
    latents, noise = latents_and_noise(family)
    a = column(alphas()[TIMES])
    noised, _ = family.noised(latents, noise, TIMES)
    # ᾱ is a product of up to 1000 float32 factors in diffusers
    assert close(noised, a.sqrt() * latents.double() + (1 - a).sqrt() * noise.double(), 1e-5)


def test_the_target_is_the_noise_where_noise_is_predicted() -> None:
    family = family_of(small_sd2(prediction_type="epsilon"))
    latents, noise = latents_and_noise(family)
    assert torch.equal(family.noised(latents, noise, TIMES)[1], noise)


def test_the_target_is_the_velocity_where_the_velocity_is_predicted() -> None:
    family = family_of(small_sd2())
    latents, noise = latents_and_noise(family)
    a = column(alphas()[TIMES])
    _, target = family.noised(latents, noise, TIMES)
    assert close(target, a.sqrt() * noise.double() - (1 - a).sqrt() * latents.double(), 1e-5)


def test_every_timestep_of_diffusion_is_equally_likely() -> None:
    family = family_of(small_sd2())
    drawn = torch.stack([family.draw_timestep(seeded_random.generator(0, 0, sample, "t")) for sample in range(4000)])
    assert drawn.shape == (4000,)
    assert drawn.dtype == torch.int64
    assert (int(drawn.min()), int(drawn.max())) == (0, 999)
    quarters = torch.bincount(drawn // 250, minlength=4)
    assert (quarters - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5  # five standard deviations


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_paper(prediction: str) -> None:
    family = family_of(small_sd2(prediction_type=prediction))
    snr = alphas() / (1 - alphas())
    below = np.minimum(snr, 5.0) / (snr if prediction == "epsilon" else snr + 1)
    found = family.loss_weights(torch.arange(STEPS), 5.0)
    assert np.abs(found.double().numpy() / below - 1).max() < 1e-4  # 1 − ᾱ_t loses digits in float32 at small t


def test_a_signal_to_noise_ratio_of_0_has_a_finite_weight() -> None:
    for prediction, weight in (("epsilon", 1.0), ("v_prediction", 0.0)):
        pipeline = small_sd2(prediction_type=prediction, rescale_betas_zero_snr=True)
        assert family_of(pipeline).loss_weights(torch.tensor([999]), 5.0).tolist() == [weight]


def test_a_base_that_predicts_something_else_is_refused() -> None:
    with pytest.raises(TrainError, match=r"predicts 'sample': use a base that predicts epsilon or v_prediction"):
        family_of(small_sd2(prediction_type="sample"))


# --- Flow matching ---


def sigmas(indices: Any, shift: float) -> Any:
    """σ of the scheduler's steps, from noise to picture: 1, 0.999, …, 0.001, shifted."""
    plain = (STEPS - np.asarray(indices, dtype="f8")) / STEPS
    return shift * plain / (1 + (shift - 1) * plain)


def uniform(sample: int) -> float:
    return float(torch.rand((1,), generator=seeded_random.generator(0, 0, sample, "t")))


def logistic(sample: int) -> float:
    normal = torch.randn((1,), generator=seeded_random.generator(0, 0, sample, "t")).double()
    return float(1 / (1 + torch.exp(-normal)))


# Flux shifts by the size of the picture when it samples; its training example does not.
@pytest.mark.parametrize(("build", "draw", "shift"), [(small_sd3, logistic, 3.0), (small_flux, uniform, 1.0)])
def test_timesteps_of_flow_matching_are_drawn_as_in_diffusers_examples(build: Any, draw: Any, shift: float) -> None:
    family = family_of(build())
    for sample in range(200):
        expected = STEPS * sigmas(int(draw(sample) * STEPS), shift)
        found = family.draw_timestep(seeded_random.generator(0, 0, sample, "t"))
        assert found.shape == ()
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_schedule_of_a_pipeline_that_has_sampled_is_still_the_whole_one() -> None:
    pipeline = small_sd3()
    pipeline.scheduler.set_timesteps(2)
    family = family_of(pipeline)
    drawn = {float(family.draw_timestep(seeded_random.generator(0, 0, sample, "t"))) for sample in range(50)}
    assert len(drawn) > 40


@pytest.mark.parametrize("build", [small_sd3, small_flux])
def test_flow_matching_mixes_noise_in_a_straight_line(build: Any) -> None:
    family = family_of(build())
    latents, noise = latents_and_noise(family)
    times = torch.tensor([1000.0, 731.5, 3.0, 500.0])
    sigma = column(times.double() / STEPS)
    noised, _ = family.noised(latents, noise, times)
    assert close(noised, (1 - sigma) * latents.double() + sigma * noise.double())


def test_flux_has_the_velocity_as_its_target() -> None:
    family = family_of(small_flux())
    latents, noise = latents_and_noise(family)
    assert close(family.noised(latents, noise, torch.tensor([500.0] * 4))[1], noise.double() - latents.double())


def test_stable_diffusion_3_s_error_is_that_of_the_velocity_times_sigma_squared() -> None:
    pipeline = small_sd3()
    family = family_of(pipeline)
    latents, noise = latents_and_noise(family)
    times = torch.tensor([1000.0, 731.5, 3.0, 500.0])
    noised, target = family.noised(latents, noise, times)
    text = family.encode_prompts(["a cat"] * 4)
    with torch.no_grad():
        velocity = pipeline.transformer(noised, text["states"], text["pooled"], times).sample
        found = (family.predict(family.denoiser, noised, times, text) - target).square().mean((1, 2, 3))
    errors = (velocity.double() - (noise.double() - latents.double())).square().mean((1, 2, 3))
    assert close(found, (times.double() / STEPS) ** 2 * errors, 1e-4)  # at σ = 0.003 the difference has lost digits


@pytest.mark.parametrize("build", [small_sd3, small_flux])
def test_min_snr_weights_are_refused_by_flow_matching(build: Any) -> None:
    family = family_of(build())
    with pytest.raises(TrainError, match=r"min-SNR .* not for flow matching: leave out snr_gamma"):
        family.loss_weights(torch.tensor([500.0]), 5.0)


# --- All ---


@pytest.mark.parametrize("name", PIPELINES)
def test_weights_are_ones_unless_asked_for(name: str) -> None:
    family = family_of(PIPELINES[name]())
    times = torch.stack([family.draw_timestep(seeded_random.generator(0, 0, sample, "t")) for sample in range(3)])
    assert family.loss_weights(times, None).tolist() == [1.0, 1.0, 1.0]


def test_a_pipeline_that_no_family_knows_is_refused_with_what_is_known() -> None:
    known = "StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline"
    lacking = r"it cannot be recorded: it has no transformer, vae, scheduler"
    with pytest.raises(TrainError, match=rf"object: no model family knows this pipeline \({lacking}\); the nearest"):
        family_of(object())
    with pytest.raises(TrainError, match=rf"the nearest known is \w+Pipeline: known are {known}, "):
        family_of(object())
