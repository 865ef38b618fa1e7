"""Wan from a picture: what is predicted is what its pipeline gives the scheduler, and a run on clips."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recorded_runs import colour, shown
from support.seeing_pipelines import wan_image
from support.weights import normal
from torch import Tensor

from svdiff_delta import attach
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import TrainError
from svdiff_train.data import to_tensor
from svdiff_train.families import family_of
from svdiff_train.sampling.image_to_image import Initial
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training.loop import train

HEIGHT, WIDTH, FRAMES = 16, 32, 5  # Wan's autoencoder reads four frames at a time after the first
WAYS = [pytest.param({"looks": True}, id="2.1"), pytest.param({"looks": False, "experts": 2}, id="2.2")]


def seen_by(pipeline: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Latents, timestep and prediction of each step of a pipeline's own run from a picture."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    step = type(pipeline.scheduler).step

    def stepping(prediction: Tensor, timestep: Any, latents: Tensor, *args: Any, **given: Any) -> Any:
        found.append((latents.clone(), torch.as_tensor(timestep), prediction.clone()))
        return step(pipeline.scheduler, prediction, timestep, latents, *args, **given)

    pipeline.scheduler.step = stepping
    try:
        pipeline(
            image=colour(3, HEIGHT).resize((WIDTH, HEIGHT)),
            prompt=["a cat"],
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=3,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    finally:
        del pipeline.scheduler.step
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_prediction_is_the_pipeline_s_own_with_what_it_sees_of_the_first_frame(way: dict[str, Any]) -> None:
    family: Any = family_of(wan_image(**way))
    family.frames = FRAMES
    family.prepare()
    first = to_tensor(colour(3, HEIGHT).resize((WIDTH, HEIGHT)))[None]
    told = {**family.join([family.encode_prompts(["a cat"])]), **family.see(first, first, "a cat")}
    other = {**told, **family.see(-first, -first, "a cat")}
    for latents, time, prediction in seen_by(family.pipeline):
        with torch.no_grad():
            found = family.predict(family.denoiser, latents, time.reshape(1), told)
            unlike = family.predict(family.denoiser, latents, time.reshape(1), other)
        scale = float(prediction.abs().max())
        assert float((found - prediction).abs().max()) <= 2e-5 * scale
        assert float((unlike - prediction).abs().max()) > 1e-3 * scale


def test_a_run_sees_the_first_frames_of_its_clips_and_its_delta_paints_from_a_picture(tmp_path: Path) -> None:
    wan_image().save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    config = TrainConfig(prompt="a cat", steps=1, resolution=16, num_frames=FRAMES, cache_latents=True)
    delta = train(base, shown(tmp_path, 16, FRAMES), config).delta
    assert any(value.any() for value in delta.values())
    pipeline = load_pipeline(base)
    sampling = Sampling(steps=1, height=16, width=16, num_frames=FRAMES, guidance=1.0)
    with attach(pipeline, delta, base=base):
        (clip,) = generate(pipeline, [("a cat", 0)], sampling, init=Initial(colour(3, 16)))
    assert len(clip) == FRAMES


def test_a_model_that_is_told_a_timestep_for_each_token_is_refused() -> None:
    pipeline = wan_image(looks=False)
    pipeline.register_to_config(expand_timesteps=True)
    with pytest.raises(TrainError, match="WanImageToVideoPipeline: its denoiser is told the first frame as one with"):
        family_of(pipeline)


def test_recording_leaves_the_autoencoder_as_it_was() -> None:
    family: Any = family_of(wan_image())
    family.prepare()
    assert inspect.ismethod(family.pipeline.vae.encode)
    assert family.encode_images(normal(1, 3, FRAMES, 16, 16)).any()
