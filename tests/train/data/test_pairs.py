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


def opened(folder: Path, kind: str = "conditions", *, skip_bad: bool = False) -> FolderPictures:
    found = open_pictures(folder, CONFIG, 8, 4, skip_bad=skip_bad, companion=kind)
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


def test_pairs_that_do_not_match_are_left_out_on_request_and_told(tmp_path: Path) -> None:
    """No partner, two, one of another shape, one that is no picture; and a picture that is none, with a partner."""
    for name in ("a", "b", "c", "d", "e", "f"):
        picture(tmp_path / f"{name}.png", 200)
        picture(tmp_path / "conditions" / f"{name}.png", 100)
    (tmp_path / "conditions" / "a.png").unlink()
    picture(tmp_path / "conditions" / "b.jpg", 100)
    picture(tmp_path / "conditions" / "c.png", 100, width=16)
    (tmp_path / "conditions" / "d.png").write_bytes(b"no picture")
    (tmp_path / "e.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"e\.png: could not be read .*, or go on without \(`skip_bad=True`\)"):
        opened(tmp_path)
    found = opened(tmp_path, skip_bad=True)
    assert [each.path.name for each in found.found.pictures] == ["f.png"]
    assert found.beside == (tmp_path / "conditions" / "f.png",)
    skipped = found.counts().skipped
    assert [*skipped] == ["e.png", "a.png", "b.png", "c.png", "d.png"]
    assert skipped["a.png"].startswith(f"{tmp_path / 'a.png'}: has nothing of its name in ")
    assert skipped["d.png"].startswith(f"{tmp_path / 'conditions' / 'd.png'}: could not be read as a picture")
    assert not found.counts().folders


def test_pairs_none_of_which_match_are_refused_even_on_request(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    (tmp_path / "conditions").mkdir()
    with pytest.raises(InputError, match=r"a\.png: has nothing of its name in .*: put one there, such as a\.png$"):
        opened(tmp_path, skip_bad=True)
