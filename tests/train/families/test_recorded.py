"""The recorded families against their pipelines' own runs, and against diffusers' training examples."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.models import live_zero
from support.recorded_pipelines import BUILDERS, VIDEOS, shared
from support.recorded_truth import PROMPT, shape_of, velocity, watched
from support.weights import normal
from torch import Tensor

from svdiff_delta import attach
from svdiff_delta.errors import TrainError
from svdiff_train.data import seeded_random
from svdiff_train.families import family_of
from svdiff_train.training.loss import denoising_loss

pytestmark = [  # what diffusers itself does: SANA's solver with numpy 2, Chroma's places
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed:FutureWarning"),
]

FAST = ("Z-Image", "Qwen-Image", "Wan 2.2", "Chroma")
"""Families whose lists, masks, experts and derived arguments are all there are; the others are slow tests."""

NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BUILDERS]
ROUNDED = 2e-5
"""float32, in other batches: sums of some hundred terms, each rounded to 2^-24."""


def family_named(name: str) -> Any:
    return family_of(shared(name))


def close(found: Tensor, expected: Tensor, tolerance: float = ROUNDED) -> bool:
    return bool((found.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max())


# --- The prediction ---


@pytest.mark.parametrize("name", NAMES)
def test_a_family_predicts_what_its_pipeline_gives_the_scheduler_at_every_step(name: str) -> None:
    family = family_named(name)
    shape = shape_of(name, family)
    steps = watched(name, family, 3, [PROMPT], shape)
    told = family.join([family.encode_prompts([PROMPT])])
    assert len(steps) == 3
    for seen in steps:
        latents = family.unpack(seen.latents, torch.Size((1, *shape)))
        with torch.no_grad():
            found = family.predict(family.denoiser, latents, seen.timestep.reshape(1), told)
        assert found.shape == latents.shape
        assert close(family.pack(found), seen.prediction)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_every_shift_is_that_of_the_pipeline_s_own_prediction(name: str) -> None:
    family = family_named(name)
    pipeline, shape = family.pipeline, shape_of(name, family)
    family.prepare()
    seen = watched(name, family, 2, [PROMPT], shape)[0]
    told = family.join([family.encode_prompts([PROMPT])])
    latents, target = family.unpack(seen.latents, torch.Size((1, *shape))), normal(1, *shape, seed=9)
    slot = seen.slot
    zero = live_zero(getattr(pipeline, slot), slot=slot)
    with attach(pipeline, zero, trainable=True) as handle:
        shifts = dict(handle.parameters())
        own = denoising_loss(velocity(name, pipeline, seen), family.pack(target))
        expected = torch.autograd.grad(own.sum(), list(shifts.values()), allow_unused=True)
        found = family.predict(family.denoiser, latents, seen.timestep.reshape(1), told)
        gradients = torch.autograd.grad(denoising_loss(found, target).sum(), list(shifts.values()), allow_unused=True)
    lengths = [float(one.norm()) for one in expected if one is not None]
    assert len(lengths) > 0.7 * len(shifts)  # what the last block makes of the text reaches nothing in some
    for name_, one, other in zip(shifts, expected, gradients, strict=True):
        assert (one is None) == (other is None), name_
        if one is not None and other is not None:
            assert float((one - other).norm()) <= 1e-4 * max(float(one.norm()), 1e-3 * max(lengths)), name_


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_batch_are_predicted_as_alone(name: str) -> None:
    family = family_named(name)
    latents = normal(2, *shape_of(name, family), seed=4)
    times = torch.tensor([950.0, 300.0])
    rows = [family.encode_prompts([prompt]) for prompt in (PROMPT, "a long red dog")]
    with torch.no_grad():
        found = family.predict(family.denoiser, latents, times, family.join(rows))
        alone = [
            family.predict(family.denoiser, latents[i : i + 1], times[i : i + 1], family.join([row]))
            for i, row in enumerate(rows)
        ]
    assert close(found, torch.cat(alone))
    assert not close(found[:1], alone[1])


def test_each_expert_of_wan_2_2_sees_the_timesteps_on_its_side_of_the_boundary() -> None:
    family = family_named("Wan 2.2")
    seen: list[tuple[str, float]] = []
    hooks = [
        getattr(family.pipeline, slot).register_forward_pre_hook(
            lambda _, args, given, slot=slot: seen.append((slot, float(given["timestep"][0]))), with_kwargs=True
        )
        for slot in family.slots
    ]
    shape = shape_of("Wan 2.2", family)
    told = family.join([family.encode_prompts([PROMPT])] * 4)
    for _ in range(2):  # before the first, the pipeline is asked for what else the denoiser is told
        seen.clear()
        with torch.no_grad():
            family.predict(family.denoiser, normal(4, *shape), torch.tensor([1000.0, 875.0, 874.0, 1.0]), told)
    for hook in hooks:
        hook.remove()
    assert seen == [("transformer", 1000.0), ("transformer", 875.0), ("transformer_2", 874.0), ("transformer_2", 1.0)]


# --- Latents ---


@pytest.mark.parametrize("name", NAMES)
def test_normalized_latents_are_what_the_pipeline_decodes_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pipeline hands its autoencoder, normalized by the family, is what the scheduler made."""
    family = family_named(name)
    pipeline, shape = family.pipeline, shape_of(name, family)
    decoded: list[Tensor] = []

    class EnoughError(Exception):
        pass

    def decode(latents: Tensor, *args: Any, **given: Any) -> None:
        decoded.append(latents.clone())
        raise EnoughError

    monkeypatch.setattr(pipeline.vae, "decode", decode)
    last: list[Tensor] = []
    step = type(pipeline.scheduler).step

    def stepping(*args: Any, **given: Any) -> Any:
        found = step(pipeline.scheduler, *args, **given)
        last.append(found[0].clone())
        return found

    monkeypatch.setattr(pipeline.scheduler, "step", stepping)
    from support.recorded_truth import call_of

    with pytest.raises(EnoughError), torch.no_grad():
        pipeline(**{**call_of(name, family, 1, [PROMPT], shape), "output_type": "np"})
    (given,) = decoded
    if type(pipeline.vae).__name__ == "AutoencoderKLFlux2":
        given = torch.nn.functional.pixel_unshuffle(given, 2)
    if name not in VIDEOS and given.dim() == 5:
        given = given.squeeze(2)
    assert close(family.autoencoder.normalize(given), family.unpack(last[-1], torch.Size((1, *shape))), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_clips_become_latents_of_the_shape_that_the_family_says(name: str) -> None:
    family = family_named(name)
    sides = (2 * family.unit, 3 * family.unit)
    frames = (1 + 2 * family.frame_unit,) if name in VIDEOS else ()
    pixels = normal(2, 3, *frames, *sides).clamp(-1, 1)
    moments = family.encode_images(pixels)
    assert moments.shape == (2, 2, *family.latent_shape(*sides, *frames))
    latents = family.sample_latents(moments, torch.zeros_like(moments[:, 0]))
    assert close(latents, family.autoencoder.normalize(moments[:, 0]))
    noisy = family.sample_latents(moments, torch.ones_like(moments[:, 0]))
    assert torch.equal(noisy, latents) == (family.mode or name == "SANA")


# --- What diffusers' training examples do ---


@pytest.mark.parametrize("name", NAMES)
def test_the_target_is_the_velocity_and_the_noise_is_mixed_in_a_straight_line(name: str) -> None:
    """As in examples/dreambooth of diffusers at the time of 0.42: train_dreambooth_lora_{flux2, flux2_klein, hidream,
    krea2, lumina2, qwen_image, sana, z_image}.py compare ε − z_0 with the output times the pipeline's sign, where
    z_t = (1 − σ) z_0 + σ ε. (Lumina 2's script compares z_0 − ε with the output itself: the same error.)
    """
    family = family_named(name)
    shape = shape_of(name, family)
    latents, noise = normal(3, *shape, seed=1), normal(3, *shape, seed=2)
    times = torch.tensor([1000.0, 731.5, 3.0])
    noised, target = family.noised(latents, noise, times)
    sigma = (times.double() / 1000).view(-1, *(1 for _ in shape))
    assert close(noised, (1 - sigma) * latents.double() + sigma * noise.double(), 2e-6)
    assert close(target, noise.double() - latents.double(), 2e-6)


SHIFTS = {"Lumina 2": 6.0, "AuraFlow": 1.73, "Z-Image": 3.0, "HiDream": 3.0, "SANA": 3.0, "Wan 2.1": 3.0}
SHIFTS |= {"Wan with UniPC": 3.0, "Wan 2.2": 3.0}
"""The shift of a family's scheduler; those that shift by the picture's size are trained without one."""


@pytest.mark.parametrize("name", NAMES)
def test_timesteps_are_uniform_over_the_scheduler_s_with_its_shift(name: str) -> None:
    family, shift = family_named(name), SHIFTS.get(name, 1.0)
    for sample in range(50):
        u = float(torch.rand((1,), generator=seeded_random.generator(0, 0, sample, "t")))
        plain = (1000 - int(u * 1000)) / 1000
        expected = 1000 * shift * plain / (1 + (shift - 1) * plain)
        found = float(family.draw_timestep(seeded_random.generator(0, 0, sample, "t")))
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "logit_normal", "mode", "cosmap"])
def test_a_weighting_scheme_draws_and_weights_as_its_paper_says(scheme: str) -> None:
    """Esser et al. 2024, section 3.1, as diffusers' scripts name it: `--weighting_scheme`."""
    family = family_of(BUILDERS["AuraFlow"]())
    assert hasattr(family, "timestep_sampling")
    mean, std, mode = (0.5, 0.7, 1.29) if scheme != "mode" else (0.0, 1.0, 0.8)
    family.timestep_sampling = family.timestep_sampling.changed(
        weighting_scheme=scheme, logit_mean=mean, logit_std=std, mode_scale=mode
    )
    for sample in range(50):
        generator = seeded_random.generator(0, 0, sample, "t")
        u = float(torch.rand((1,), generator=generator))
        if scheme == "logit_normal":
            drawn = float(torch.randn((1,), generator=seeded_random.generator(0, 0, sample, "t")))
            u = 1 / (1 + np.exp(-(mean + std * drawn)))
        if scheme == "mode":
            u = 1 - u - mode * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        plain = (1000 - np.floor(u * 1000)) / 1000
        expected = 1000 * 1.73 * plain / (1 + 0.73 * plain)
        found = float(family.draw_timestep(seeded_random.generator(0, 0, sample, "t")))
        assert abs(found - expected) < 2  # a step of the schedule, where u rounds to the next
    sigma = np.array([0.9, 0.5, 0.1])
    weights = {"sigma_sqrt": sigma**-2, "cosmap": 2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2))}.get(scheme, np.ones(3))
    found_weights = family.loss_weights(torch.tensor(1000 * sigma), None)
    assert np.allclose(found_weights.double().numpy(), weights, rtol=1e-5)


def test_min_snr_weights_have_no_meaning_for_a_recorded_family() -> None:
    with pytest.raises(TrainError, match=r"ZImagePipeline: min-SNR .* not for flow matching: leave out snr_gamma"):
        family_named("Z-Image").loss_weights(torch.tensor([500.0]), 5.0)


# --- Text ---


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_text_encoders_that_the_prediction_depends_on(name: str) -> None:
    family = family_named(name)
    family.prepare()
    shape = shape_of(name, family)
    for slot in family.text_slots:
        zero = live_zero(getattr(family.pipeline, slot), slot=slot)
        with attach(family.pipeline, zero, trainable=True) as handle:
            told = family.join([family.encode_prompts([PROMPT])])
            found = family.predict(family.denoiser, normal(1, *shape), torch.tensor([500.0]), told)
            denoising_loss(found, normal(1, *shape, seed=1)).sum().backward()
            assert any(each.grad is not None and each.grad.any() for _, each in handle.parameters()), slot


def test_prompts_are_encoded_with_what_the_pipeline_s_call_says_and_not_with_encode_prompt_s_defaults() -> None:
    """Wan's call reads 512 tokens, its `encode_prompt` 226 where nothing is said."""
    assert family_named("Wan 2.2").encode_prompts([PROMPT])["text0"].shape[1] == 512


# --- What cannot be ---


def test_an_unknown_pipeline_is_told_the_nearest_known_one_and_what_its_recording_says() -> None:
    class ZImageTurboPipeline(diffusers.ZImagePipeline):  # type: ignore[misc]
        pass

    known = BUILDERS["Z-Image"]()
    with pytest.raises(
        TrainError, match=r"no model family knows this pipeline \(its recording is clear, .* in x .* t; "
    ):
        family_of(ZImageTurboPipeline(**known.components))
    with pytest.raises(TrainError, match=r"the nearest known is ZImagePipeline: known are StableDiffusionPipeline, "):
        family_of(ZImageTurboPipeline(**known.components))


def test_a_recording_that_is_ambiguous_is_refused_with_what_it_lacks() -> None:
    pipeline = BUILDERS["AuraFlow"]()
    for parameter in pipeline.transformer.proj_out.parameters():
        parameter.data.zero_()
    with pytest.raises(
        TrainError, match=r"AuraFlowPipeline: its recording is ambiguous .*nothing else than 0 comes out"
    ):
        family_of(pipeline).prepare()


def test_a_recording_leaves_the_pipeline_as_it_was() -> None:
    pipeline = BUILDERS["Z-Image"]()
    before = {key: value.clone() for key, value in pipeline.transformer.state_dict().items()}
    scheduler, state = pipeline.scheduler, torch.get_rng_state()
    family_of(pipeline).prepare()
    assert pipeline.scheduler is scheduler
    assert not hasattr(scheduler, "num_inference_steps")  # which sampling sets
    assert "encode_prompt" not in vars(pipeline)
    assert not pipeline.transformer._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in pipeline.transformer.state_dict().items())
