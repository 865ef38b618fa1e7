"""Resolution buckets: which sizes there are, which one a picture takes, and who shares a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdiff_delta.errors import InputError
from svdiff_train.data import Picture, choose_buckets, draw_pictures, find_images, make_buckets

REAL = Path(__file__).parents[2] / "data" / "pictures"


def test_the_buckets_of_sdxl_are_sizes_that_it_was_trained_on() -> None:
    # Podell et al. 2023, appendix I: of each height the widest with at most 1024² pixels
    assert make_buckets(1024, 64) == (
        (640, 1600),
        (704, 1472),
        (768, 1344),
        (832, 1216),
        (896, 1152),
        (960, 1088),
        (1024, 1024),
        (1088, 960),
        (1152, 896),
        (1216, 832),
        (1344, 768),
        (1472, 704),
        (1600, 640),
    )


@given(unit=st.sampled_from([8, 16, 32, 64]), units=st.integers(1, 40))
def test_buckets_are_whole_units_of_no_more_pixels_than_the_square(unit: int, units: int) -> None:
    resolution = unit * units
    found = make_buckets(resolution, unit)
    assert (resolution, resolution) in found
    assert list(found) == sorted(set(found))
    for height, width in found:
        assert height % unit == width % unit == 0
        assert height * width <= resolution**2
        assert max(height, width) <= 2.5 * min(height, width)
        assert (width, height) in found


@pytest.mark.parametrize("resolution", [0, -64, 32, 100])
def test_a_resolution_that_is_not_a_multiple_of_the_unit_is_refused(resolution: int) -> None:
    with pytest.raises(InputError, match=f"cannot take {resolution} pixels: use a multiple of 64"):
        make_buckets(resolution, 64)


def test_a_picture_takes_the_bucket_of_the_nearest_aspect_ratio() -> None:
    pictures = find_images(REAL).pictures
    # A square, 176 x 256 (1 : 1.45; the neighbours are 1.29 and 1.46) and 256 x 192.
    assert choose_buckets(pictures, make_buckets(1024, 64)) == ((1024, 1024), (832, 1216), (1152, 896))


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_no_other_bucket_cuts_less_away(height: int, width: int) -> None:
    buckets = make_buckets(512, 64)
    (chosen,) = choose_buckets([Picture(Path("a.png"), height, width)], buckets)

    def kept(size: tuple[int, int]) -> float:
        ratio = size[0] * width / (size[1] * height)
        return min(ratio, 1 / ratio)

    assert kept(chosen) >= max(map(kept, buckets)) - 1e-8


def test_all_samples_of_a_step_are_in_one_bucket() -> None:
    sizes = [(64, 64), (40, 96), (64, 64), (40, 96), (40, 96)]
    for step in range(50):
        drawn = draw_pictures(sizes, 0, step, range(4), "picture")
        assert len({sizes[index] for index in drawn}) == 1


def test_every_picture_is_drawn_as_often_as_any_other() -> None:
    sizes = [(64, 64), (40, 96), (64, 64), (40, 96), (40, 96)]
    drawn = Counter(draw_pictures(sizes, 0, step, [3], "picture")[0] for step in range(5000))
    assert max(abs(drawn[index] - 1000) for index in range(5)) < 5 * (5000 * 0.2 * 0.8) ** 0.5  # five deviations


def test_two_processes_draw_what_one_draws_for_both() -> None:
    sizes = [(64, 64), (40, 96), (64, 64), (40, 96), (40, 96)]
    for step in range(20):
        whole = draw_pictures(sizes, 7, step, range(4), "picture")
        parts = [draw_pictures(sizes, 7, step, part, "picture") for part in (range(2), range(2, 4))]
        assert parts[0] + parts[1] == whole


def test_what_is_drawn_depends_on_the_purpose() -> None:
    sizes = [(64, 64)] * 100
    assert draw_pictures(sizes, 0, 0, range(4), "a") != draw_pictures(sizes, 0, 0, range(4), "b")
