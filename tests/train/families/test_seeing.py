"""Families that see a picture or a mask beside the noise, against their pipelines' own runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from support.models import live_zero
from support.pipelines import small_sd2
from support.seeing_pipelines import MASKED, SEEING
from support.weights import normal
from torch import Tensor

from svdiff_delta import attach
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.data import to_tensor
from svdiff_train.families import family_of, qwen_image_edit
from svdiff_train.families.inpainting import Inpainting
from svdiff_train.sampling.image_to_image import Initial
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training.loss import denoising_loss

PROMPT = "a cat"
FAST = ("SD 1 inpainting",)
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SEEING]
SIZE = {"Qwen-Image-Edit": (32, 64)}
"""Height and width; where nothing stands, 16 and 24."""


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = (normal(height, width, 3, seed=seed) * 60 + 128).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.numpy())


def mask(height: int, width: int) -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[: height // 2, width // 4 :] = 255
    return Image.fromarray(values)


def companion_of(name: str, height: int, width: int) -> tuple[Image.Image, Tensor]:
    """What is seen beside a picture, and the same as training has it."""
    if name in MASKED:
        image = mask(height, width)
        return image, (torch.from_numpy(np.asarray(image).copy()) > 127).float()[None, None]
    image = picture(height, width, seed=1)
    return image, to_tensor(image)[None]


def called(name: str, height: int, width: int) -> dict[str, Any]:
    """The arguments of the pipeline's call, without guidance by a second prediction."""
    shown, given = companion_of(name, height, width)[0], dict[str, Any]()
    if name in MASKED:
        given = {
            "image": picture(height, width),
            "mask_image": shown,
            "strength": 1.0,
            "height": height,
            "width": width,
        }
    else:
        given = {"image": shown, "height": height, "width": width}
    if name == "Flux.1 Kontext":
        given |= {"max_area": height * width, "_auto_resize": False}
    scale = {"Flux.1 Kontext": 3.5, "Flux.1 Fill": 30.0, "Qwen-Image-Edit": None}.get(name, 1.0)
    given |= {"true_cfg_scale": 1.0} if scale is None else {"guidance_scale": scale}
    return {**given, "prompt": [PROMPT], "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines draw the latents of what they see; training takes their mean. The text encoder sees it small."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as module

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    height, width = SIZE["Qwen-Image-Edit"]
    monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: (width, height, None))
    monkeypatch.setattr(qwen_image_edit, "AREA", height * width)


@pytest.mark.parametrize("name", NAMES)
def test_a_family_predicts_what_its_pipeline_gives_the_scheduler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = SEEING[name]()
    family: Any = family_of(pipeline)
    family.prepare()
    height, width = SIZE.get(name, (16, 24))
    seen = list[tuple[Tensor, Tensor, Tensor]]()
    step = type(pipeline.scheduler).step

    def stepping(prediction: Tensor, timestep: Any, latents: Tensor, *args: Any, **given: Any) -> Any:
        seen.append((prediction.clone(), torch.as_tensor(timestep), latents.clone()))
        return step(pipeline.scheduler, prediction, timestep, latents, *args, **given)

    monkeypatch.setattr(pipeline.scheduler, "step", stepping)
    with torch.no_grad():
        pipeline(**called(name, height, width), generator=torch.Generator().manual_seed(0))
    told = family.join([family.encode_prompts([PROMPT])])
    pixels = to_tensor(picture(height, width))[None]
    beside = family.join([family.see(pixels, companion_of(name, height, width)[1], PROMPT)])
    shape = (1, *family.latent_shape(height, width))
    assert len(seen) == 2
    for prediction, timestep, latents in seen:
        unpacked = latents if latents.shape == shape else unpack(family, latents, shape)
        with torch.no_grad():
            found = family.predict(family.denoiser, unpacked, timestep.reshape(1), {**told, **beside})
        expected = prediction if prediction.shape == shape else unpack(family, prediction, shape)
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def unpack(family: Any, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    if isinstance(family, qwen_image_edit.QwenImageEdit):
        found: Tensor = family.unpack(packed, torch.Size(shape))
    else:
        found = family.unpack(packed, *shape[-2:])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_seen_reaches_the_prediction_and_every_shift_has_a_gradient(name: str) -> None:
    pipeline = SEEING[name]()
    family: Any = family_of(pipeline)
    height, width = SIZE.get(name, (16, 24))
    latents = normal(1, *family.latent_shape(height, width), seed=4)
    times = family.draw_timestep(torch.Generator().manual_seed(0)).reshape(1)
    noised, target = family.noised(latents, normal(*latents.shape, seed=5), times)
    told = family.join([family.encode_prompts([PROMPT])])
    pixels, (_, companion) = to_tensor(picture(height, width))[None], companion_of(name, height, width)
    beside = [family.join([family.see(pixels, each, PROMPT)]) for each in (companion, companion.flip(-1))]
    with torch.no_grad():
        one, other = (family.predict(family.denoiser, noised, times, {**told, **each}) for each in beside)
    assert (one - other).abs().max() > 1e-4 * one.abs().max()
    zero = live_zero(family.denoiser, slot=family.slot)
    with attach(pipeline, zero, trainable=True) as handle:
        found = family.predict(family.denoiser, noised, times, {**told, **beside[0]})
        denoising_loss(found, target).sum().backward()
        gradients = [each.grad for _, each in handle.parameters() if each.grad is not None]
    # The text of Qwen-Image's last block, here its only one, reaches nothing: a fifth of its weights.
    assert sum(bool(gradient.any()) for gradient in gradients) >= (0.8 if name == "Qwen-Image-Edit" else 0.9) * len(
        zero
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_that_sees_paints_from_what_it_is_given_and_not_from_nothing(name: str) -> None:
    pipeline = SEEING[name]()
    height, width = SIZE.get(name, (16, 24))
    sampling = Sampling(steps=2, height=height, width=width, guidance=1.0)
    start = Initial(picture(height, width), mask(height, width) if name in MASKED else None)
    (painted,) = generate(pipeline, [(PROMPT, 0)], sampling, init=start)
    assert painted.size == (width, height)
    with pytest.raises(InputError, match=r"paints from image.*: give an initial picture"):
        generate(pipeline, [(PROMPT, 0)], sampling)
    if name in MASKED:
        with pytest.raises(InputError, match="fills in, and is told no mask"):
            generate(pipeline, [(PROMPT, 0)], sampling, init=Initial(start.image))


def test_a_unet_that_sees_no_mask_is_refused() -> None:
    pipeline = small_sd2()
    with pytest.raises(
        TrainError, match=r"its UNet takes 4 channels and sees no mask: train it as the pipeline that paint"
    ):
        Inpainting(pipeline)


def test_prior_preservation_has_no_pictures_of_pairs() -> None:
    from svdiff_train.training.meaning import settle_family

    family = family_of(SEEING["Flux.1 Kontext"]())
    with pytest.raises(
        TrainError, match=r"FluxKontextPipeline: pictures of the class are painted, and have no conditions"
    ):
        settle_family(family, TrainConfig(prompt="a sks cat", class_prompt="a cat"))


@pytest.mark.parametrize(
    "name", [pytest.param("SD 1 inpainting"), pytest.param("Flux.1 Kontext", marks=pytest.mark.slow)]
)
def test_a_run_on_pairs_learns(name: str, tmp_path: Path) -> None:
    from svdiff_delta.base_model.base import open_base
    from svdiff_train.training.loop import train

    SEEING[name]().save_pretrained(tmp_path / "base")
    place = tmp_path / "pictures"
    beside = place / ("masks" if name in MASKED else "conditions")
    beside.mkdir(parents=True)
    for index in range(2):
        picture(16, 16, seed=index).save(place / f"{index}.png")
        (mask(16, 16) if name in MASKED else picture(16, 16, seed=5 + index)).save(beside / f"{index}.png")
    config = TrainConfig(prompt=PROMPT, steps=3, resolution=16, learning_rate=0.05)
    outcome = train(open_base(tmp_path / "base"), place, config)
    assert outcome.loss is not None
    assert any(outcome.delta[key].any() for key in outcome.delta)
