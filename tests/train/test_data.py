"""The pictures of a subject."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from svdiff_delta.errors import InputError
from svdiff_train.data import find_images, load_image


def test_pictures_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.JPG", "b.png"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "nothing")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        find_images(tmp_path)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png: could not be read as a picture"):
        load_image(tmp_path / "a.png", 8)


def test_a_picture_becomes_numbers_from_minus_one_to_one(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (0, 255, 127)).save(tmp_path / "a.png")
    tensor = load_image(tmp_path / "a.png", 8)
    assert tensor.shape == (3, 8, 8)
    assert tensor[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, 127 / 127.5 - 1])


def test_the_centre_square_is_taken(tmp_path: Path) -> None:
    picture = Image.new("RGB", (24, 8), "white")
    picture.paste((0, 0, 0), (8, 0, 16, 8))
    picture.save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", 8) == -1).all()


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((0, 0, 0), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the dark top becomes the right side
    picture.save(tmp_path / "a.png", exif=exif)
    tensor = load_image(tmp_path / "a.png", 8)
    assert (tensor[:, :, 4:] == -1).all()
    assert (tensor[:, :, :4] == 1).all()


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png", 8), torch.ones(3, 8, 8))
