"""What belongs to each picture beside it, and pairs that do not match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdiff_delta.errors import InputError
from svdiff_train.data import CENTRE, Cut
from svdiff_train.data.image_sets import FolderPictures, open_pictures
from svdiff_train.settings.config import TrainConfig

CONFIG = TrainConfig(prompt="a cat")


def picture(path: Path, value: int, width: int = 8, height: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = value
    Image.fromarray(pixels).save(path)


def opened(folder: Path, kind: str = "conditions") -> FolderPictures:
    found = open_pictures(folder, CONFIG, 8, 4, skip_bad=False, companion=kind)
    assert isinstance(found, FolderPictures)
    return found


def test_a_condition_has_the_name_of_its_picture_and_is_cut_and_mirrored_with_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "conditions" / "a.jpg", 100)
    found = opened(tmp_path)
    for cut, column in ((CENTRE, -1), (Cut(flipped=True), 0)):
        loaded = found.open(0, (8, 8), cut)
        assert loaded.companion is not None
        assert loaded.companion.shape == (3, 8, 8)
        assert abs(float(loaded.companion[0, 4, column]) - (100 / 127.5 - 1)) < 0.05
        assert abs(float(loaded.pixels[0, 4, column]) - (200 / 127.5 - 1)) < 0.01
    assert not list(found.counts().folders)


def test_a_mask_is_0_and_1(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "masks" / "a.png", 255)
    mask = opened(tmp_path, "masks").open(0, (8, 8), CENTRE).companion
    assert mask is not None
    assert mask.shape == (1, 8, 8)
    assert torch.equal(mask[0], torch.tensor([0.0] * 4 + [1.0] * 4).expand(8, 8))


def test_the_digest_is_that_of_both(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "conditions" / "a.png", 100)
    before = opened(tmp_path).digest()
    picture(tmp_path / "conditions" / "a.png", 101)
    assert opened(tmp_path).digest() != before


# --- Pairs that do not match ---


def test_a_model_that_edits_needs_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    with pytest.raises(
        InputError, match=r"conditions: there is no such folder, and the model needs one of conditions fo"
    ):
        opened(tmp_path)


def test_a_picture_without_a_partner_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "b.png", 200)
    picture(tmp_path / "conditions" / "a.png", 100)
    with pytest.raises(
        InputError, match=r"b\.png: has nothing of its name in .*conditions: put one there, such as b\.png"
    ):
        opened(tmp_path)


def test_a_partner_without_a_picture_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "conditions" / "a.png", 100)
    picture(tmp_path / "conditions" / "c.png", 100)
    with pytest.raises(InputError, match=r"c\.png: belongs to no picture in .*: rename it, or take it away"):
        opened(tmp_path)


def test_two_partners_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "conditions" / "a.png", 100)
    picture(tmp_path / "conditions" / "a.jpg", 100)
    with pytest.raises(InputError, match=r"a\.png: has 2 files of its name in .*conditions"):
        opened(tmp_path)


def test_a_partner_of_another_shape_is_refused_and_one_of_another_size_is_not(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "conditions" / "a.png", 100, width=16, height=16)
    assert opened(tmp_path).open(0, (8, 8), CENTRE).companion is not None
    picture(tmp_path / "conditions" / "a.png", 100, width=16, height=8)
    with pytest.raises(InputError, match=r"a\.png: has 16x8 pixels, and its picture 8x8: give both one shape"):
        opened(tmp_path)
