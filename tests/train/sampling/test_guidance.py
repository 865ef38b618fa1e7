"""Guidance by the pipeline's own signature, clips as files, and painting from a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pipelines import small_flux, small_sd2, small_sd3
from support.recorded_pipelines import shared

from svdiff_delta.errors import InputError, MissingExtraError
from svdiff_train.sampling.clip_out import check_clip_path, gif_bytes, save_clip
from svdiff_train.sampling.guidance import guided, own_guidance
from svdiff_train.sampling.image_to_image import Initial
from svdiff_train.sampling.sample import Sampling, check_sampling, generate, is_video, size_unit


def given(pipeline: Any, **settings: Any) -> dict[str, Any]:
    return guided(pipeline, Sampling(**settings), 1)


def test_guidance_goes_where_the_pipeline_has_a_place_for_it() -> None:
    assert given(small_sd3(), guidance=4.0) == {"guidance_scale": 4.0}
    assert given(small_flux(), guidance=3.5) == {"guidance_scale": 3.5}
    both = {"guidance_scale": 3.5, "true_cfg_scale": 2.0, "negative_prompt": ["blue"]}
    assert given(small_flux(), guidance=3.5, true_cfg_scale=2.0, negative_prompt="blue") == both
    true = {"true_cfg_scale": 4.0, "negative_prompt": [" "]}
    assert given(shared("Qwen-Image"), guidance=4.0) == true
    assert given(shared("Qwen-Image"), guidance=1.0) == {"true_cfg_scale": 1.0}


def test_where_nothing_is_said_the_guidance_is_the_pipeline_s_own() -> None:
    assert own_guidance(small_sd2()) == 7.5
    assert own_guidance(shared("Z-Image")) == 5.0
    assert own_guidance(shared("Qwen-Image")) == 4.0
    assert given(shared("Z-Image"), guidance=None) == {"guidance_scale": 5.0}


def test_true_guidance_acts_on_qwen_image() -> None:
    pipeline = shared("Qwen-Image")
    sizes = {"steps": 2, "height": 16, "width": 16}
    plain, guided_, other = (
        np.asarray(generate(pipeline, [("a cat", 0)], Sampling(guidance=scale, negative_prompt=negative, **sizes))[0])
        for scale, negative in ((1.0, None), (6.0, None), (6.0, "a red dog"))
    )
    assert (plain != guided_).any()
    assert (guided_ != other).any()


def test_guidance_that_a_pipeline_has_not_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"StableDiffusion3Pipeline: has no true_cfg_scale beside its guidance: say it as"
    ):
        check_sampling(small_sd3(), Sampling(true_cfg_scale=2.0))
    with pytest.raises(InputError, match=r"knows no negative prompt: leave it out, or give a `true_cfg_scale` above 1"):
        check_sampling(small_flux(), Sampling(negative_prompt="blue"))
    check_sampling(small_flux(), Sampling(negative_prompt="blue", true_cfg_scale=2.0))


# --- Clips ---


def test_a_video_pipeline_gives_the_frames_of_each_clip() -> None:
    pipeline = shared("Wan 2.1")
    assert is_video(pipeline)
    assert not is_video(small_sd2())
    sampling = Sampling(steps=2, height=16, width=32, num_frames=5, guidance=1.0, batch_size=2)
    first, second = generate(pipeline, [("a cat", 0), ("a dog", 1)], sampling)
    assert len(first) == len(second) == 5
    assert {frame.size for frame in (*first, *second)} == {(32, 16)}
    (alone,) = generate(pipeline, [("a dog", 1)], sampling)
    assert np.abs(np.asarray(alone[2], "i4") - np.asarray(second[2], "i4")).max() <= 1


def test_frames_are_of_clips_alone() -> None:
    with pytest.raises(
        InputError, match=r"StableDiffusionPipeline: num_frames is for models of moving pictures: leave it"
    ):
        check_sampling(small_sd2(), Sampling(num_frames=5))


@pytest.mark.parametrize(("name", "unit"), [("Wan 2.1", 16), ("LTX", 32), ("Qwen-Image", 4), ("SANA", 32)])
def test_sizes_are_multiples_of_what_the_family_says(name: str, unit: int) -> None:
    assert size_unit(shared(name)) == unit
    with pytest.raises(InputError, match=f"use multiples of {unit}"):
        check_sampling(shared(name), Sampling(height=unit + 1, width=unit))


def frames() -> list[Image.Image]:
    return [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (0, 80, 160, 240)]


def test_a_gif_has_the_frames_and_says_how_they_were_painted(tmp_path: Path) -> None:
    raw = gif_bytes(frames(), {"prompt": "a cat", "seed": 3}, 10)
    assert gif_bytes(frames(), {"seed": 3, "prompt": "a cat"}, 10) == raw
    save_clip(frames(), tmp_path / "a.gif", {"prompt": "a cat"}, fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4
        assert image.info["duration"] == 100
        assert b"a cat" in image.info["comment"]
        for index, value in enumerate((0, 80, 160, 240)):
            image.seek(index)
            assert abs(int(np.asarray(image.convert("RGB"))[0, 0, 0]) - value) <= 2


def test_a_name_without_an_end_is_a_folder_of_frames(tmp_path: Path) -> None:
    save_clip(frames(), tmp_path / "clip", {"prompt": "a cat"})
    assert sorted(path.name for path in (tmp_path / "clip").glob("*.png")) == [f"{index:05d}.png" for index in range(4)]


def test_other_ends_of_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"clips, which are written as GIF, MP4 or a folder of frames: call it .*\.gif"
    ):
        check_clip_path(tmp_path / "a.png")


def test_an_mp4_without_its_writer_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match="imageio-ffmpeg"):
        check_clip_path(tmp_path / "a.mp4")


# --- From a picture ---


def red() -> Image.Image:
    return Image.fromarray(np.full((20, 18, 3), (220, 20, 30), np.uint8))


def test_an_initial_picture_is_painted_from_by_the_twin_in_a_size_that_fits() -> None:
    pipeline = small_sd2()
    pictures = [
        generate(pipeline, [("a cat", 0)], Sampling(steps=4, guidance=1.0, strength=strength), init=Initial(red()))[0]
        for strength in (0.25, 1.0)
    ]
    assert {picture.size for picture in pictures} == {(16, 16)}
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).any()


def test_a_pipeline_without_a_twin_is_named() -> None:
    with pytest.raises(
        InputError, match=r"WanPipeline: takes no initial picture, and diffusers has no image-to-image pip"
    ):
        generate(shared("Wan 2.1"), [("a cat", 0)], Sampling(steps=1), init=Initial(red()))


def test_a_mask_is_of_pipelines_that_fill_in() -> None:
    with pytest.raises(InputError, match=r"StableDiffusionImg2ImgPipeline: takes no mask: leave the mask out"):
        generate(small_sd2(), [("a cat", 0)], Sampling(steps=1), init=Initial(red(), red()))


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_strength_is_a_share(strength: float) -> None:
    with pytest.raises(InputError, match="strength must be above 0 and at most 1"):
        Sampling(strength=strength)
