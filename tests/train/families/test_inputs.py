"""What the denoisers are given: latents, sizes, packing, guidance, text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.pipelines import PIPELINES, small_flux, small_sd2, small_sd3, small_sdxl
from torch import Tensor, nn

from svdiff_delta.errors import TrainError
from svdiff_train.data import seeded_random
from svdiff_train.families import Family, family_of


def seen(family: Family, conditioning: Any = None, *, batch: int = 2) -> dict[str, Any]:
    """Predict once and return what the denoiser was given by keyword, and the noised latents."""
    found: dict[str, Any] = {}
    hook = family.denoiser.register_forward_pre_hook(lambda _, args, given: found.update(given), with_kwargs=True)
    noised = seeded_random.noise((batch, *family.latent_shape(16, 24)), 0, 0, 0)
    times = torch.stack([family.draw_timestep(seeded_random.generator(0, 0, sample, "t")) for sample in range(batch)])
    text = {**family.encode_prompts(["a cat"] * batch), **(conditioning or {})}
    with torch.no_grad():
        family.predict(family.denoiser, noised, times, text)
    hook.remove()
    return {**found, "times": times, "noised": noised}


# --- Pictures ---


@pytest.mark.parametrize(("build", "shift"), [(small_sd2, 0.0), (small_sd3, 0.06), (small_flux, 0.1)])
def test_latents_are_drawn_from_the_posterior_shifted_and_scaled(build: Any, shift: float) -> None:
    pipeline = build()
    family = family_of(pipeline)
    images = seeded_random.noise((2, 3, 16, 24), 0, 0, 0).clamp(-1, 1)
    moments = family.encode_images(images)
    shape = family.latent_shape(16, 24)
    assert moments.shape == (2, 2, *shape)
    assert not moments.requires_grad
    parts = pipeline.vae._encode(images).double().chunk(2, dim=1)  # mean and logarithm of the variance
    noise = seeded_random.noise((2, *shape), 0, 0, 1)
    expected = (parts[0] + torch.exp(parts[1] / 2) * noise.double() - shift) * 0.5
    assert (family.sample_latents(moments, noise).double() - expected).abs().max() < 1e-5


def test_the_autoencoder_runs_in_float32_where_it_is_kept_in_float16() -> None:
    pipeline = small_sd2()
    pipeline.vae.half()
    family = family_of(pipeline)
    images = seeded_random.noise((1, 3, 16, 16), 0, 0, 0).clamp(-1, 1)
    found = family.encode_images(images)
    assert found.dtype == torch.float32
    assert pipeline.vae.dtype == torch.float16
    pipeline.vae.float()
    assert torch.equal(found, family.encode_images(images))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_model_s_own_size_is_a_multiple_of_the_unit(name: str) -> None:
    family = family_of(PIPELINES[name]())
    assert family.resolution % family.unit == 0
    side = family.latent_shape(family.resolution, family.resolution)[1]
    assert side == {"flux": 128, "flux without guidance": 128}.get(name, 8)


# --- The UNets ---


def test_stable_diffusion_s_prediction_is_the_unet_s() -> None:
    pipeline = small_sd2()
    family = family_of(pipeline)
    noised, times = seeded_random.noise((2, 4, 8, 12), 0, 0, 0), torch.tensor([3, 700])
    text = family.encode_prompts(["a cat", "a house"])
    tokens = pipeline.tokenizer(["a cat", "a house"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipeline.unet(noised, times, pipeline.text_encoder(tokens).last_hidden_state).sample
        assert torch.equal(family.predict(family.denoiser, noised, times, text), expected)


def test_sdxl_is_told_that_the_picture_was_not_cut() -> None:
    given = seen(family_of(small_sdxl()))["added_cond_kwargs"]
    assert given["time_ids"].tolist() == 2 * [[16, 24, 0, 0, 16, 24]]


def test_sdxl_is_told_the_sizes_of_each_picture_in_its_pipeline_s_order() -> None:
    pipeline = small_sdxl()
    sizes = torch.tensor([[40.0, 30.0, 4.0, 0.0, 16.0, 24.0], [16.0, 24.0, 0.0, 0.0, 16.0, 24.0]])
    given = seen(family_of(pipeline), {"sizes": sizes})["added_cond_kwargs"]
    assert torch.equal(given["time_ids"], sizes)
    # original size, upper left corner, target size
    whole = pipeline._get_add_time_ids((40, 30), (4, 0), (16, 24), torch.float32, 8)
    assert torch.equal(given["time_ids"][:1], whole)


def test_sdxl_reads_both_text_encoders() -> None:
    pipeline = small_sdxl()
    tokens = pipeline.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        first, second = (
            encoder(tokens, output_hidden_states=True) for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
        )
    found = family_of(pipeline).encode_prompts(["a cat"])
    assert torch.equal(found["states"], torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1))
    assert torch.equal(found["pooled"], second.text_embeds)


# --- The transformers ---


def test_packing_there_and_back_changes_nothing() -> None:
    family: Any = family_of(small_flux())
    latents = seeded_random.noise((3, 4, 8, 12), 0, 0, 0)
    patches = family.pack(latents)
    assert patches.shape == (3, 24, 16)
    assert torch.equal(family.unpack(patches, 8, 12), latents)


def test_flux_s_patches_are_squares_of_two_by_two_row_by_row() -> None:
    family: Any = family_of(small_flux())
    latents = seeded_random.noise((1, 4, 8, 12), 0, 0, 0)
    expected = torch.stack(
        [latents[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten() for y in range(4) for x in range(6)]
    )
    assert torch.equal(family.pack(latents)[0], expected)


def test_flux_is_given_positions_guidance_and_its_share_of_time() -> None:
    given = seen(family_of(small_flux()))
    assert torch.allclose(given["timestep"], given["times"] / 1000)
    assert given["guidance"].tolist() == [3.5, 3.5]
    assert given["img_ids"].tolist() == [[0, y, x] for y in range(4) for x in range(6)]
    assert given["txt_ids"].tolist() == [[0, 0, 0]] * given["encoder_hidden_states"].shape[1]


def test_flux_without_a_guidance_embedding_is_given_none() -> None:
    assert seen(family_of(small_flux(guided=False)))["guidance"] is None


def test_stable_diffusion_3_reads_three_text_encoders_and_does_without_the_third() -> None:
    families = [family_of(small_sd3(t5=t5)) for t5 in (True, False)]
    whole, without = (family.encode_prompts(["a cat"]) for family in families)
    clip = families[0].pipeline.tokenizer_max_length
    assert whole["states"].shape == without["states"].shape
    assert whole["pooled"].shape == (1, 16)
    assert without["states"][:, clip:].eq(0).all()
    assert whole["states"][:, clip:].any()


def test_a_pipeline_without_text_encoders_cannot_read_prompts() -> None:
    pipeline = small_flux()
    pipeline.register_modules(text_encoder=None, text_encoder_2=None)
    with pytest.raises(TrainError, match="FluxPipeline: has no text encoder to read prompts with: load the pipeline"):
        family_of(pipeline).encode_prompts(["a cat"])


@pytest.mark.parametrize(
    ("name", "slot"), [("sd2", "text_encoder"), ("sdxl", "text_encoder_2"), ("sd3", "text_encoder_2")]
)
def test_a_text_encoder_that_is_needed_and_not_there_is_named(name: str, slot: str) -> None:
    pipeline = PIPELINES[name]()
    pipeline.register_modules(**{slot: None})
    what = slot if len(family_of(pipeline).text_slots) else "text encoder"
    with pytest.raises(TrainError, match=f"has no {what} to read prompts with: load the pipeline with its text"):
        family_of(pipeline).encode_prompts(["a cat"])


@pytest.mark.parametrize(("size", "side"), [((8, 12), 16), ([12, 8], 16), (8, 16)])
def test_a_unet_that_was_made_for_no_square_takes_the_square_that_fits_in(size: Any, side: int) -> None:
    pipeline = small_sd2()
    pipeline.unet.register_to_config(sample_size=size)
    assert family_of(pipeline).resolution == side


@pytest.mark.parametrize("size", [None, [], "8", [8, None]])
def test_a_unet_that_does_not_say_its_size_is_refused(size: Any) -> None:
    pipeline = small_sd2()
    pipeline.unet.register_to_config(sample_size=size)
    with pytest.raises(TrainError, match=r"the UNet's configuration has the sample_size .*: write there"):
        family_of(pipeline)


# --- Dtypes and wrappers ---


@pytest.mark.parametrize("name", PIPELINES)
def test_weights_in_float32_run_under_autocast_without_a_warning(name: str) -> None:
    family = family_of(PIPELINES[name]())
    noised = seeded_random.noise((1, *family.latent_shape(16, 16)), 0, 0, 0)
    times = family.draw_timestep(seeded_random.generator(0, 0, 0, "t")).view(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = family.predict(family.denoiser, noised, times, family.encode_prompts(["a cat"]))
    assert found.isfinite().all()


class Wrapper(nn.Module):
    """As a data-parallel or compiled module: it has no config, dtype or device of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **given: Any) -> Any:
        return self.module(*args, **given)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_model_in_bfloat16_may_be_wrapped_and_is_given_its_own_dtype(name: str) -> None:
    pipeline = PIPELINES[name]()
    pipeline.to(torch.bfloat16)
    family = family_of(pipeline)
    noised = seeded_random.noise((1, *family.latent_shape(16, 16)), 0, 0, 0)
    times = family.draw_timestep(seeded_random.generator(0, 0, 0, "t")).view(1)
    with torch.no_grad():
        text = family.encode_prompts(["a cat"])
        found: Tensor = family.predict(Wrapper(family.denoiser), noised, times, text)
    assert found.shape == noised.shape
    assert found.isfinite().all()
