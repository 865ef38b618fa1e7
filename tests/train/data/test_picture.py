"""One picture: upright, flattened, scaled and cut, and what is known of its sizes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from svdiff_delta.errors import InputError
from svdiff_train.data import CENTRE, Cut, draw_cut, find_images, load_image, seeded_random
from svdiff_train.data.picture import inspect_image

REAL = Path(__file__).parents[2] / "data" / "pictures"


def stripes(path: Path, width: int, height: int) -> Path:
    """A picture whose red is its column and whose green is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype("u1")
    Image.fromarray(pixels).save(path)
    return path


def corner(pixels: Tensor) -> tuple[int, int]:
    """Column and row in the file of a cut's upper left pixel."""
    red, green, _ = ((pixels[:, 0, 0] + 1) * 127.5).round().int().tolist()
    return red, green


def test_a_picture_becomes_numbers_from_minus_one_to_one(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (0, 255, 127)).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png", 8).pixels
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == torch.float32
    assert pixels[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, 127 / 127.5 - 1])


def test_the_centre_square_is_taken(tmp_path: Path) -> None:
    picture = Image.new("RGB", (24, 8), "white")
    picture.paste((0, 0, 0), (8, 0, 16, 8))
    picture.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", 8)
    assert (loaded.pixels == -1).all()
    assert loaded.sizes == (8, 24, 0, 8, 8, 8)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((0, 0, 0), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the dark top becomes the right side
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = load_image(tmp_path / "a.png", 8).pixels
    assert (pixels[:, :, 4:] == -1).all()
    assert (pixels[:, :, :4] == 1).all()


def test_a_photograph_from_a_telephone_has_its_upright_size() -> None:
    with Image.open(REAL / "robot_toy.jpg") as stored:
        assert stored.size == (256, 192)
    assert inspect_image(REAL / "robot_toy.jpg") == (256, 192)
    loaded = load_image(REAL / "robot_toy.jpg", 64)
    assert loaded.sizes == (256, 192, 11, 0, 64, 64)  # 85 rows were there, 21 are gone, about half of them above
    # The robot is white before a dark grey sofa, and fills the middle.
    assert loaded.pixels[:, 24:40, 24:40].mean() > loaded.pixels[:, :, :12].mean() + 0.3


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png", 8).pixels, torch.ones(3, 8, 8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes_of_colour_are_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    assert load_image(path, 8).pixels.min() > 0.98


# --- Cuts ---


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (CENTRE, (4, 0)),
        (Cut(0.0, 0.0), (0, 0)),
        (Cut(1.0, 1.0), (8, 0)),
        (Cut(0.5, 0.25), (2, 0)),
        (Cut(0.5, 0.0, flipped=True), (15, 0)),
        (Cut(0.5, 1.0, flipped=True), (7, 0)),
    ],
)
def test_a_cut_is_where_it_says(tmp_path: Path, cut: Cut, expected: tuple[int, int]) -> None:
    loaded = load_image(stripes(tmp_path / "a.png", 16, 8), 8, cut=cut)
    assert corner(loaded.pixels) == expected
    left = 15 - expected[0] if cut.flipped else expected[0]
    assert loaded.sizes == (8, 16, 0, left, 8, 8)


def test_a_cut_of_a_tall_picture_moves_down(tmp_path: Path) -> None:
    loaded = load_image(stripes(tmp_path / "a.png", 8, 16), 8, cut=Cut(0.75, 0.1))
    assert corner(loaded.pixels) == (0, 6)
    assert loaded.sizes == (16, 8, 6, 0, 8, 8)


def test_a_picture_is_scaled_until_it_covers_the_size_and_no_further(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 30, 40).sizes == (60, 90, 0, 2, 30, 40)  # 45 columns, 5 too many
    assert load_image(tmp_path / "a.png", 120, 180).sizes == (60, 90, 0, 0, 120, 180)


def test_what_is_left_of_a_cut_stays_in_its_proportions(tmp_path: Path) -> None:
    found = load_image(stripes(tmp_path / "a.png", 200, 100), 50, 50, Cut(0.5, 1.0)).pixels
    columns = (found[0] + 1) * 127.5
    # Half size: columns 100, 102, … of the file, each the mean of two.
    assert (columns - (100.5 + 2 * torch.arange(50))).abs()[:, 2:-2].max() <= 1


def test_cuts_are_drawn_from_seed_step_and_sample_alone() -> None:
    places = [(seed, step, sample) for seed in range(2) for step in range(3) for sample in range(3)]
    first = [draw_cut(*place, crop=True, flip=True) for place in places]
    seeded_random.noise((5,), 0, 0, 0)
    again = [draw_cut(*place, crop=True, flip=True) for place in reversed(places)]
    assert again[::-1] == first
    assert len({(cut.down, cut.across) for cut in first}) == len(places)


def test_cuts_lie_everywhere_and_every_second_is_mirrored() -> None:
    found = [draw_cut(0, step, 0, crop=True, flip=True) for step in range(2000)]
    for side in ("down", "across"):
        tenths = np.bincount([int(getattr(cut, side) * 10) for cut in found], minlength=10)
        assert abs(tenths - 200).max() < 5 * (2000 * 0.1 * 0.9) ** 0.5  # five standard deviations
    assert abs(sum(cut.flipped for cut in found) - 1000) < 5 * (2000 * 0.25) ** 0.5


def test_what_is_not_asked_for_is_not_drawn() -> None:
    assert draw_cut(0, 0, 0, crop=False, flip=False) == CENTRE
    flips = [draw_cut(0, step, 0, crop=False, flip=True) for step in range(20)]
    assert {(cut.down, cut.across) for cut in flips} == {(0.5, 0.5)}
    cuts = [draw_cut(0, step, 0, crop=True, flip=False) for step in range(20)]
    assert not any(cut.flipped for cut in cuts)
    assert [draw_cut(0, step, 0, crop=True, flip=True).down for step in range(20)] == [cut.down for cut in cuts]


# --- What cannot be read ---


def refused(path: Path) -> str:
    """The one message, whether the picture is inspected or loaded."""
    with pytest.raises(InputError) as found:
        load_image(path, 8)
    with pytest.raises(InputError) as inspected:
        inspect_image(path)
    assert str(inspected.value) == str(found.value)
    return str(found.value)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    assert refused(tmp_path / "a.png").startswith(f"{tmp_path / 'a.png'}: could not be read as a picture (")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_a_picture_that_ends_too_early_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    content = BytesIO()
    with Image.open(REAL / "duck_toy.jpg") as picture:
        picture.resize((48, 48)).save(content, {".jpg": "jpeg"}.get(suffix, suffix[1:]))
    whole, path = content.getvalue(), tmp_path / f"a{suffix}"
    for length in range(0, int(len(whole) * 0.9), len(whole) // 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="could not be read as a picture"):
            inspect_image(path)


def test_bytes_that_were_changed_are_read_or_refused_but_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    content = BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, "png")
    refusals = 0
    for _ in range(200):
        changed = bytearray(content.getvalue())
        changed[random.integers(len(changed))] = random.integers(256)
        (tmp_path / "a.png").write_bytes(changed)
        try:
            load_image(tmp_path / "a.png", 8)
        except InputError:
            refusals += 1
    assert refusals > 50


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert refused(tmp_path / "a.webp") == (
        f"{tmp_path / 'a.webp'}: is an animation of 2 frames: save one of them as a picture"
    )


def test_a_photograph_with_a_preview_beside_it_is_read(tmp_path: Path) -> None:
    photograph, preview = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (8, 8), "black")
    photograph.save(tmp_path / "a.jpg", "mpo", save_all=True, append_images=[preview])
    assert inspect_image(tmp_path / "a.jpg") == (16, 16)
    assert load_image(tmp_path / "a.jpg", 16).pixels.min() > 0.98


def test_more_than_8_bits_of_grey_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype="u2")).save(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == f"{tmp_path / 'a.png'}: has more than 8 bits per channel: save it with 8"


def test_real_photographs_are_found_with_their_sizes() -> None:
    found = find_images(REAL)
    assert {picture.path.name: (picture.height, picture.width) for picture in found.pictures} == {
        "duck_toy.jpg": (256, 256),
        "grey_sloth_plushie.jpg": (176, 256),
        "robot_toy.jpg": (256, 192),
    }
