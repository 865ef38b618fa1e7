"""CLIP's vectors against transformers called plainly in float64, and folders that hold no CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from support.files import contents
from support.hub import Hub
from support.scenes import CAR, CAT, portraits
from transformers import CLIPModel, CLIPTokenizer

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import Clip, find_clip, image_alignment, text_alignment, without_tokens
from svdiff_train.tiny import base_path, open_tiny

FOLDER = base_path() / "clip"
TEXTS = ["a photo of a cat", "a photo of a glossy car on a blue background"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load(FOLDER)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [*portraits(CAT)[:2], *portraits(CAR)[:2]]


def plain_images(images: list[Image.Image]) -> NDArray[np.float64]:
    """Unit vectors in float64, of pictures of the CLIP's own size."""
    pixels = np.stack([np.asarray(image, np.float64) for image in images]).transpose(0, 3, 1, 2) / 127.5 - 1
    model = CLIPModel.from_pretrained(FOLDER).double().eval()
    with torch.no_grad():
        found = model.get_image_features(torch.from_numpy(pixels)).pooler_output.numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def plain_texts(texts: list[str]) -> NDArray[np.float64]:
    """Unit vectors in float64, each text on its own and without padding."""
    model, tokenizer = CLIPModel.from_pretrained(FOLDER).double().eval(), CLIPTokenizer.from_pretrained(FOLDER)
    with torch.no_grad():
        rows = [model.get_text_features(**tokenizer([text], return_tensors="pt")).pooler_output[0] for text in texts]
    found = torch.stack(rows).numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_vectors_are_those_of_transformers(clip: Clip, images: list[Image.Image]) -> None:
    seen, read = clip.image_features(images), clip.text_features(TEXTS)
    assert (seen.dtype, read.dtype, clip.size) == (np.float32, np.float32, 64)
    np.testing.assert_allclose(seen, plain_images(images), atol=2e-6)
    np.testing.assert_allclose(read, plain_texts(TEXTS), atol=2e-6)


def test_text_alignment_is_the_cosine_of_each_picture_with_its_prompt(clip: Clip, images: list[Image.Image]) -> None:
    prompts = [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]
    cosines = np.einsum("nd,nd->n", plain_images(images), plain_texts(prompts))
    np.testing.assert_allclose(text_alignment(clip, images, prompts), cosines, atol=2e-6)
    with pytest.raises(InputError, match="4 pictures have 1 prompts"):
        text_alignment(clip, images, TEXTS[:1])


def test_image_alignment_is_the_mean_cosine_with_all_references(clip: Clip, images: list[Image.Image]) -> None:
    vectors = plain_images(images)
    expected = [np.mean([vectors[i] @ vectors[j] for j in (1, 2, 3)]) for i in range(4)]
    np.testing.assert_allclose(image_alignment(clip, images, images[1:]), expected, atol=2e-6)


def test_a_picture_that_was_seen_is_not_computed_again(images: list[Image.Image]) -> None:
    clip, calls = Clip.load(FOLDER), list[int]()
    processor = clip._processor
    clip._processor = lambda images, **how: (calls.append(len(images)), processor(images=images, **how))[1]
    first = clip.image_features(images[:2])
    again = clip.image_features([images[1].copy(), images[3], images[1], images[0]])
    assert calls == [2, 1]
    np.testing.assert_array_equal(again[[3, 0, 2]], first[[0, 1, 1]])


def test_other_sizes_are_scaled_and_cut_as_the_preprocessor_says(clip: Clip, images: list[Image.Image]) -> None:
    wide = images[0].resize((192, 128), Image.Resampling.BICUBIC)
    cut = wide.resize((96, 64), Image.Resampling.BICUBIC).crop((16, 0, 80, 64))
    np.testing.assert_allclose(clip.image_features([wide]), plain_images([cut]), atol=2e-6)


def test_a_text_that_is_too_long_is_named(clip: Clip) -> None:
    long = "a photo of a " + "small " * 30 + "cat"
    assert clip.too_long([*TEXTS, long]) == [long]
    assert clip.text_features([long]).shape == (1, 128)


def test_tokens_are_taken_out_as_whole_words() -> None:
    assert without_tokens("a photo of a sks dog", ["sks"]) == "a photo of a dog"
    assert without_tokens("a V1 dog beside a v2, and V10", ["V1", "V2"]) == "a dog beside a , and V10"
    assert without_tokens("a sksy dog", ["sks"]) == "a sksy dog"


def test_the_embedded_base_has_a_clip_of_its_own(tmp_path: Path) -> None:
    assert find_clip(open_tiny()) == (FOLDER, "tiny/clip")


def without(folder: Path, *names: str) -> Path:
    shutil.copytree(FOLDER, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "nowhere", "no such folder"),
        (base_path(), "has no config.json"),
        (base_path() / "text_encoder", "its model_type is 'clip_text_model'"),
        (FOLDER / "config.json", "has no config.json"),
        (without(tmp_path / "mute", "tokenizer.json", "tokenizer_config.json"), "it has no tokenizer"),
        (without(tmp_path / "blind", "preprocessor_config.json"), "could not be loaded as a CLIP"),
    ):
        with pytest.raises(InputError, match=why):
            Clip.load(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = without(tmp_path / "clip", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(InputError, match=r"only a pickle \(pytorch_model.bin\)"):
        Clip.load(folder)


def test_broken_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    folder = without(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"visual_projection\.weight"):
        Clip.load(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="could not be loaded as a CLIP"):
        Clip.load(folder)


def test_a_clip_on_the_hub_is_fetched_without_pickles(hub: Hub, images: list[Image.Image]) -> None:
    hub.add("owner/clip", {**contents(FOLDER), "pytorch_model.bin": b"\x80", "tf_model.h5": b"\0"})
    found = Clip.load("owner/clip")
    assert found.name == "owner/clip"
    np.testing.assert_array_equal(found.image_features(images), Clip.load(FOLDER).image_features(images))
    assert not [name for name in hub.sent if name.endswith((".bin", ".h5"))]


def test_a_repository_of_pickles_is_refused(hub: Hub) -> None:
    files = {"config.json": json.dumps({"model_type": "clip"}).encode(), "pytorch_model.bin": b"\x80"}
    hub.add("owner/old", files)
    with pytest.raises(InputError, match="only a pickle"):
        Clip.load("owner/old")
    assert not [name for name in hub.sent if name.endswith(".bin")]
