"""What a step sees: repeatable draws, one size per step, each picture encoded once, captions in their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from svdiff_delta.errors import InputError
from svdiff_train.data.batches import Batches, Texts
from svdiff_train.data.image_sets import ClassPictures, FolderPictures, open_pictures
from svdiff_train.families import Family, family_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny

CONFIG = TrainConfig(prompt="a photo of a sks cat", class_prompt="a photo of a cat", buckets=True)


@pytest.fixture(scope="module")
def family() -> Family:
    return family_of(load_pipeline(open_tiny()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two wide pictures and a tall one, which has a caption."""
    for name, size, colour in (("a", (96, 48), "red"), ("b", (100, 50), "green"), ("c", (48, 96), "blue")):
        Image.new("RGB", size, colour).save(tmp_path / f"{name}.png")
    (tmp_path / "c.txt").write_text("a sks cat, sitting")
    return tmp_path


def pictures(folder: Path, family: Family) -> FolderPictures:
    return open_pictures(folder, CONFIG, 64, family.unit, skip_bad=False)


def batches(folder: Path, family: Family, **more: Any) -> Batches:
    painted = ClassPictures([Image.new("RGB", (64, 64), "white")] * 2, "a photo of a cat")
    return Batches(family, [pictures(folder, family), painted], **{"seed": 0, "crop": False, "flip": False} | more)


def test_a_batch_has_one_size_which_its_pictures_choose(folder: Path, family: Family) -> None:
    drawn = batches(folder, family)
    shapes = {tuple(drawn.batch(step, [0, 1]).latents.shape) for step in range(12)}
    channels = family.pipeline.vae.config.latent_channels
    assert shapes == {(4, channels, 12, 20), (4, channels, 20, 12)}


def test_captions_stand_in_the_place_of_the_prompt(folder: Path, family: Family) -> None:
    drawn = batches(folder, family)
    for step in range(12):
        batch = drawn.batch(step, [0])
        tall = batch.latents.shape[2] > batch.latents.shape[3]
        assert batch.prompts == ("a sks cat, sitting" if tall else CONFIG.prompt, "a photo of a cat")
        assert batch.subjects == 1


def test_samples_do_not_depend_on_who_else_is_in_the_batch(folder: Path, family: Family) -> None:
    drawn = batches(folder, family, flip=True, crop=True)
    whole, half = drawn.batch(3, [0, 1, 2]), drawn.batch(3, [1, 2])
    rows = [1, 2, 4, 5]
    for name in ("noise", "timesteps", "sizes"):
        assert torch.equal(getattr(whole, name)[rows], getattr(half, name))
    assert torch.equal(whole.latents[rows], half.latents)


def test_each_picture_is_encoded_once(folder: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = family.encode_images
    monkeypatch.setattr(family, "encode_images", lambda images: (calls.append(1), encode(images))[1])
    drawn = batches(folder, family)
    for step in range(20):
        drawn.batch(step, [0, 1])
    assert len(calls) <= 3 + 2 * 2  # those of the class in both sizes


def test_a_caption_without_the_token_is_refused_by_name(folder: Path, family: Family) -> None:
    (folder / "c.txt").write_text("a cat")
    with pytest.raises(InputError, match=r"c\.png: its caption 'a cat' does not have the token 'sks'"):
        pictures(folder, family)


def test_the_digest_tells_other_captions(folder: Path, family: Family) -> None:
    before = pictures(folder, family).digest()
    (folder / "c.txt").write_text("a sks cat, standing")
    assert pictures(folder, family).digest() != before


def test_prompts_are_encoded_once_unless_their_encoder_is_trained(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Sequence[str]] = []
    encode = family.encode_prompts
    monkeypatch.setattr(family, "encode_prompts", lambda prompts: (calls.append(prompts), encode(prompts))[1])
    for trained, expected in ((False, [["a"], ["b"]]), (True, [("a", "b", "a")] * 2)):
        calls.clear()
        texts = Texts(family, trained=trained)
        first, second = (texts.conditioning(("a", "b", "a")) for _ in range(2))
        assert calls == expected
        assert all(torch.equal(first[key], second[key]) for key in first)
