"""Clips from a first frame, by the models of pipelines that make them from text."""

from __future__ import annotations

import sys
from typing import Any

import diffusers
import numpy as np
import pytest
from support.recorded_pipelines import BUILDERS
from support.recorded_runs import colour
from support.weights import normal
from torch import nn

from svdiff_delta.errors import InputError
from svdiff_train.sampling.image_to_image import Initial, image_to_image
from svdiff_train.sampling.sample import Sampling, generate

SAMPLING = Sampling(steps=2, guidance=1.0, height=32, width=32, num_frames=5)


def wan_5b() -> Any:
    """Wan 2.2 of 5B, whose denoiser is told a timestep for each token."""
    pipeline = BUILDERS["Wan 2.1"]()
    pipeline.register_to_config(expand_timesteps=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ltx() -> Any:
    pipeline = BUILDERS["LTX"]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("make", [wan_5b, ltx])
def test_a_clip_is_painted_from_a_picture_by_the_very_models(make: Any) -> None:
    pipeline = make()
    twin = image_to_image(pipeline)
    assert type(twin).__name__ == type(pipeline).__name__.replace("Pipeline", "ImageToVideoPipeline")
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    assert all(getattr(twin, name) is part for name, part in models.items())
    clips = [generate(pipeline, [("a cat", 0)], SAMPLING, init=Initial(colour(number, 32)))[0] for number in (0, 9)]
    assert [len(clip) for clip in clips] == [5, 5]
    assert not np.array_equal(*(np.asarray(clip[0]) for clip in clips))


def test_the_first_frame_of_wan_is_what_the_autoencoder_makes_of_the_picture() -> None:
    """The pipeline puts the picture's own latents in the first frame's place."""
    pipeline = wan_5b()
    before = [np.asarray(generate(pipeline, [("a cat", 0)], SAMPLING, init=Initial(colour(0, 32)))[0][0])]
    pipeline.transformer.proj_out.weight.data += normal(*pipeline.transformer.proj_out.weight.shape)
    before.append(np.asarray(generate(pipeline, [("a cat", 0)], SAMPLING, init=Initial(colour(0, 32)))[0][0]))
    assert np.array_equal(*before)


def test_a_model_of_clips_that_sees_no_picture_says_so() -> None:
    with pytest.raises(InputError, match="WanPipeline: takes no initial picture, and diffusers has no image-to-image"):
        image_to_image(BUILDERS["Wan 2.1"]())


def test_the_library_that_diffusers_cleans_prompts_with_is_there() -> None:
    """Without ftfy, `WanImageToVideoPipeline` ends in a NameError at its first prompt (diffusers 0.42)."""
    import diffusers.pipelines.wan.pipeline_wan_i2v as module

    assert module.ftfy is sys.modules["ftfy"]
    assert diffusers.utils.is_ftfy_available()
