"""Parts of pictures: cut as the embedded base's judge cuts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from support.scenes import CAR, CAT, pairs

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import REGIONS, crop, parse_region
from tools.build_tiny.clip import CROP, crops
from tools.build_tiny.scenes import batch

CENTRES = {"left": (16.0, 32.0), "right": (48.0, 32.0), "top": (32.0, 16.0), "bottom": (32.0, 48.0)}


@pytest.mark.parametrize("name", CENTRES)
def test_sides_are_the_crops_that_the_judge_makes(name: str) -> None:
    scenes = pairs(CAT, CAR)
    pixels = torch.from_numpy(batch(np.stack([np.asarray(scene) for scene in scenes])))
    spots, sides = torch.tensor([CENTRES[name]] * len(scenes)), torch.full((len(scenes),), float(CROP))
    expected = ((crops(pixels, spots, sides).numpy() + 1) * 127.5).transpose(0, 2, 3, 1)
    found = np.stack([np.asarray(crop(scene, REGIONS[name], 64), np.float32) for scene in scenes])
    assert np.abs(found - expected).max() <= 1.01  # a colour is rounded once more


def test_edges_cut_exactly_there() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    found = crop(Image.fromarray(pixels), parse_region("0.25,0.5,0.5,1"), 20)
    np.testing.assert_array_equal(np.asarray(found), pixels[20:, 20:40])


def test_a_wide_picture_has_squares_at_its_sides() -> None:
    pixels = np.zeros((30, 200, 3), np.uint8)
    pixels[:, 100:] = 255
    assert np.asarray(crop(Image.fromarray(pixels), REGIONS["left"], 8)).max() == 0
    assert np.asarray(crop(Image.fromarray(pixels), REGIONS["right"], 8)).min() == 255


def test_the_whole_is_the_whole() -> None:
    assert parse_region("whole").whole
    assert parse_region("0,0,1,1").whole
    assert not parse_region("left").whole


@pytest.mark.parametrize("text", ["middle", "0,0,1", "0.5,0,0.5,1", "0,0,1,2", "-0.1,0,1,1", "nan,0,1,1", ""])
def test_other_regions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"no such region|are not a region's edges"):
        parse_region(text)
