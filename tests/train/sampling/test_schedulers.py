"""Schedulers: DDIM unless something else is asked for, others by name, and the pipeline's own is left in its place."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from support.pipelines import SCHEDULE, small_flux, small_sd2, small_sd3

from svdiff_delta.errors import InputError
from svdiff_train.sampling.sample import Sampling, check_sampling, generate
from svdiff_train.sampling.schedulers import is_diffusion, make_scheduler, scheduled


def with_scheduler(cls: Any, **config: Any) -> Any:
    pipeline = small_sd2()
    pipeline.scheduler = cls(**config)
    return pipeline


def test_diffusion_models_sample_with_ddim_whatever_their_own_scheduler_is() -> None:
    pipeline = with_scheduler(diffusers.PNDMScheduler, beta_start=0.001, beta_schedule="scaled_linear")
    with scheduled(pipeline) as scheduler:
        assert type(pipeline.scheduler) is type(scheduler) is diffusers.DDIMScheduler
        assert (scheduler.config.beta_start, scheduler.config.beta_schedule) == (0.001, "scaled_linear")
    assert type(pipeline.scheduler) is diffusers.PNDMScheduler


def test_latents_are_not_clipped_where_the_base_does_not_say_so() -> None:
    assert not make_scheduler(with_scheduler(diffusers.EulerDiscreteScheduler)).config.clip_sample
    explicit = with_scheduler(diffusers.DDPMScheduler, clip_sample=True)
    assert make_scheduler(explicit, "ddim").config.clip_sample


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "eulerdiscrete", "EULERDISCRETESCHEDULER"])
def test_a_scheduler_is_found_by_its_name_in_any_case_with_or_without_its_suffix(name: str) -> None:
    assert type(make_scheduler(small_sd2(), name)) is diffusers.EulerDiscreteScheduler


def test_an_unknown_scheduler_is_refused_with_the_compatible_ones() -> None:
    with pytest.raises(InputError, match=r"scheduler 'karras': none that goes with DDIM.*DDIMScheduler, .*UniPC"):
        make_scheduler(small_sd2(), "karras")


@pytest.mark.parametrize("build", [small_sd3, small_flux])
def test_flow_matching_keeps_its_own_scheduler(build: Any) -> None:
    pipeline = build()
    assert not is_diffusion(pipeline)
    assert make_scheduler(pipeline) is pipeline.scheduler
    with pytest.raises(InputError, match="goes with FlowMatchEulerDiscreteScheduler is called so"):
        make_scheduler(pipeline, "DDIM")


@pytest.mark.parametrize("build", [small_sd3, small_flux])
def test_flow_matching_paints_without_eta_and_refuses_it(build: Any) -> None:
    (image,) = generate(build(), [("a cat", 0)], Sampling(steps=1, height=16, width=16))
    assert image.size == (16, 16)
    with pytest.raises(InputError, match=r"FlowMatchEulerDiscreteScheduler has no η, and eta is 0\.5"):
        check_sampling(build(), Sampling(eta=0.5))


def test_eta_is_refused_where_the_scheduler_has_none() -> None:
    with pytest.raises(InputError, match="EulerDiscreteScheduler has no η"):
        check_sampling(small_sd2(), Sampling(scheduler="EulerDiscrete", eta=0.1))


def test_a_negative_prompt_is_refused_where_guidance_is_distilled() -> None:
    with pytest.raises(InputError, match="FluxPipeline: its guidance is distilled"):
        check_sampling(small_flux(), Sampling(negative_prompt="blue"))


@pytest.mark.parametrize(
    ("build", "side", "message"), [(small_sd2, 20, "multiples of 8"), (small_sd3, 22, "multiples of 4")]
)
def test_a_size_that_cannot_be_painted_is_refused(build: Any, side: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sampling(build(), Sampling(height=side, width=16))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eta": 1.5}, "eta must be within"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"height": 64}, "give both"),
        ({"guidance": 1.0, "negative_prompt": "blue"}, "does nothing at guidance 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**given)


def test_noise_on_the_way_has_the_variance_of_ddim() -> None:
    """σ_t = η √((1 − ᾱ_s)/(1 − ᾱ_t)) √(1 − ᾱ_t/ᾱ_s), DDIM's Eq. 16, on the way from t to s."""
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    t, s, eta = 501, 401, 0.6
    wanted = eta * ((1 - alphas[s]) / (1 - alphas[t]) * (1 - alphas[t] / alphas[s])).sqrt()
    with scheduled(small_sd2()) as scheduler:
        scheduler.set_timesteps(10)
        zero = torch.zeros(1, 4, 8, 8)
        stepped = scheduler.step(zero, t, zero, eta=eta, variance_noise=torch.ones_like(zero)).prev_sample
    torch.testing.assert_close(stepped.double(), wanted.expand_as(stepped), rtol=1e-5, atol=0)


def test_eta_reaches_the_sampler_and_each_seed_draws_its_own_noise() -> None:
    pipeline = small_sd2()
    jobs = [("a cat", 0), ("a cat", 1)]
    plain, noisy, again = (generate(pipeline, jobs, Sampling(steps=3, eta=eta)) for eta in (0.0, 1.0, 1.0))
    assert noisy[0].tobytes() == again[0].tobytes() != plain[0].tobytes()
    assert noisy[0].tobytes() != noisy[1].tobytes()
