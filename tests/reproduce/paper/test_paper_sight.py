"""Measures of pictures, on pictures with known contents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reproduce.paper.sight import SEAM, Sight, colours, ground, half, middle, seam, silhouette
from reproduce.paper.subjects import SCENE, SUBJECTS


def opened(name: str, index: int = 0) -> Image.Image:
    return picture(SUBJECTS[name].folder / f"{index:02}.png")


def picture(path: Path) -> Image.Image:
    with Image.open(path) as found:
        return found.convert("RGB")


def stitched(first: Image.Image, second: Image.Image, *, above: bool = False) -> Image.Image:
    """Two pictures, each squeezed into one half."""
    canvas = Image.new("RGB", (64, 64))
    canvas.paste(first.resize((64, 32) if above else (32, 64)), (0, 0))
    canvas.paste(second.resize((64, 32) if above else (32, 64)), (0, 32) if above else (32, 0))
    return canvas


@pytest.fixture(scope="module")
def sight() -> Sight:
    return Sight()


@pytest.mark.parametrize("above", [False, True])
def test_a_seam_is_seen_where_grounds_differ(above: bool) -> None:
    assert seam(stitched(opened("poodle", 0), opened("black cat", 1), above=above)) > SEAM


def test_no_seam_is_seen_in_plain_pictures() -> None:
    assert all(seam(opened(name, index)) < SEAM for name in SUBJECTS for index in range(5))
    assert all(seam(picture(SCENE[name].path)) < SEAM for name in ("horse", "cat-mushroom", "castle", "car-tree"))


def test_a_horizon_at_the_middle_counts_as_a_seam() -> None:
    assert seam(picture(SCENE["bear"].path)) > SEAM


def test_a_soft_seam_is_still_seen() -> None:
    """The autoencoder blurs a seam over a few pixels."""
    pixels = np.asarray(stitched(opened("poodle", 0), opened("black cat", 1)), np.float64)
    for _ in range(3):
        pixels[:, 1:-1] = (pixels[:, :-2] + 2 * pixels[:, 1:-1] + pixels[:, 2:]) / 4
    assert seam(Image.fromarray(pixels.astype(np.uint8))) > SEAM


def test_each_half_is_nearest_to_its_own_subject(sight: Sight) -> None:
    names = ["black cat", "police car", "pagoda"]
    cat = picture(SCENE["cat-mushroom"].path)
    kinds = [sight.small_references(SUBJECTS[name]) for name in names]
    labels, means = sight.nearest([half(cat, "left")], kinds)
    assert names[labels[0]] == "black cat"
    assert means.shape == (1, 3)
    car = picture(SCENE["car-tree"].path)
    assert names[sight.nearest([half(car, "left")], kinds)[0][0]] == "police car"


def test_known_things_are_named(sight: Sight) -> None:
    assert sight.named([half(picture(SCENE["cat-mushroom"].path), "right")]) == ["mushroom"]


def test_the_ground_is_named_by_its_border() -> None:
    assert [ground(opened("pagoda", index)) for index in range(5)] == ["yellow", "blue", "green", "white", "pink"]


def test_a_subject_is_found_where_it_stands() -> None:
    canvas = Image.new("RGB", (64, 64), (66, 110, 214))
    canvas.paste((248, 248, 246), (4, 20, 24, 44))
    mask = silhouette(canvas)
    assert mask.sum() == 20 * 24
    assert middle(canvas) == pytest.approx((13.5 - 32) / 32)
    assert middle(Image.new("RGB", (64, 64))) == 0.0


def test_colours_are_shares_of_what_is_not_ground() -> None:
    canvas = Image.new("RGB", (64, 64), (66, 110, 214))
    canvas.paste((250, 10, 10), (20, 20, 40, 40))
    found = colours(canvas)
    assert found[3 * 16] == 1.0
    assert found.sum() == 1.0


def test_alignments_are_cosines(sight: Sight) -> None:
    pictures = [opened("black cat", index) for index in range(2)]
    found = sight.image_alignment(pictures, sight.references(SUBJECTS["black cat"]))
    seen = sight.seen([opened("black cat", index) for index in range(5)])
    expected = [float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for b in seen])) for a in seen[:2]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
