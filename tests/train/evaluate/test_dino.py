"""DINO's vectors against transformers called plainly in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.scenes import CAR, CAT, portraits
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessorPil, ViTModel

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import Detector, Dino, image_alignment
from svdiff_train.tiny import base_path

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HALF = [0.5, 0.5, 0.5]


def first(folder: Path) -> Any:
    """Write a ViT with ViT's preprocessor, as the first DINO has it: without weights of a pooling layer."""
    model = ViTModel(ViTConfig(**SHAPE, image_size=64, patch_size=8))
    model.save_pretrained(folder)
    weights = {key: value for key, value in load_file(folder / "model.safetensors").items() if "pooler" not in key}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ViTImageProcessorPil(size={"height": 64, "width": 64}, image_mean=HALF, image_std=HALF).save_pretrained(folder)
    return model


def second(folder: Path) -> Any:
    """Write a DINOv2, whose preprocessor cuts at the centre."""
    model = Dinov2Model(Dinov2Config(**{**SHAPE, "mlp_ratio": 2}, image_size=70, patch_size=8))
    model.save_pretrained(folder)
    size, cut = {"shortest_edge": 64}, {"height": 64, "width": 64}
    BitImageProcessorPil(size=size, crop_size=cut, image_mean=HALF, image_std=HALF).save_pretrained(folder)
    return model


@pytest.mark.parametrize("write", [first, second])
def test_vectors_are_the_class_tokens(write: Callable[[Path], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = write(tmp_path), [*portraits(CAT)[:2], portraits(CAR)[0]]
    pixels = np.stack([np.asarray(image, np.float64) for image in images]).transpose(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        token = model.double().eval()(pixel_values=torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()
    unit = token / np.linalg.norm(token, axis=1, keepdims=True)
    dino = Dino.load(tmp_path)
    assert dino.size == 64
    np.testing.assert_allclose(dino.image_features(images), unit, atol=2e-6)
    expected = [(unit[i] @ unit[1] + unit[i] @ unit[2]) / 2 for i in range(3)]
    np.testing.assert_allclose(image_alignment(dino, images, images[1:]), expected, atol=2e-6)


def test_it_tells_concepts_apart_by_their_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first(tmp_path)
    detector = Detector.from_pictures(Dino.load(tmp_path), {"cat": portraits(CAT)[:1], "car": portraits(CAR)[:1]})
    images: list[Image.Image] = [portraits(CAT)[0], portraits(CAR)[0]]
    from svdiff_train.evaluate import REGIONS

    assert detector.regions(images, [REGIONS["whole"]]).labels.tolist() == [["cat"], ["car"]]


def test_a_clip_is_no_dino() -> None:
    with pytest.raises(InputError, match="is no DINO, its model_type is 'clip'"):
        Dino.load(base_path() / "clip")
