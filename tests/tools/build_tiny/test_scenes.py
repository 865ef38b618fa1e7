"""Scenes: the same from the same numbers, and their captions true of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdiff_train.evaluate.article import article
from tools.build_tiny.bank import build_bank, open_bank
from tools.build_tiny.grounds import COLOURS, PLACES, Ground, paint
from tools.build_tiny.judge import border_colour
from tools.build_tiny.plan import RARE, Plan, draw_plan, generator
from tools.build_tiny.scenes import MissingPictureError, Sprites, batch, compose, load_sprites, scene, tinted
from tools.build_tiny.subjects import HELD_OUT, STYLES, TRAINED, Subject

from .pictures import write_packages


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def sprites(npm: Path) -> Sprites:
    return load_sprites(npm)


def plans(count: int, **chances: float) -> list[Plan]:
    return [draw_plan(generator(3, index), **chances) for index in range(count)]  # type: ignore[arg-type]


def test_a_scene_is_the_same_every_time(sprites: Sprites) -> None:
    first, second = scene(17, sprites), scene(17, sprites)
    assert first[1] == second[1]
    assert np.array_equal(first[0], second[0])


def test_other_seeds_and_numbers_give_other_scenes(sprites: Sprites) -> None:
    pictures = [scene(17, sprites)[0], scene(18, sprites)[0], scene(17, sprites, seed=9)[0]]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_a_picture_becomes_a_model_input() -> None:
    given = batch(np.full((2, 64, 64, 3), 255, np.uint8))
    assert given.shape == (2, 3, 64, 64)
    assert given.dtype == np.float32
    assert given.max() == 1


def test_captions_name_every_subject_and_no_other_style() -> None:
    for plan in plans(600):
        other = {*STYLES} - {p.style for p in plan.placements}
        for placed in plan.placements:
            assert placed.subject.name in plan.caption
        assert not other & set(plan.caption.split())


def test_captions_say_left_and_right_as_it_is() -> None:
    for plan in plans(600):
        words = plan.caption
        if len(plan.placements) == 2 and " on the left and " in words:
            left, right = (p.subject.name for p in plan.placements)
            assert plan.placements[0].x < plan.placements[1].x
            assert words.index(left) < words.index("on the left")
            assert words.index(right, words.index("on the left")) < words.index("on the right")
        elif "on the left" in words:
            assert plan.placements[0].x < 27
        elif "on the right" in words:
            assert plan.placements[0].x > 37


def test_captions_say_above_and_below_as_it_is() -> None:
    seen = 0
    for plan in plans(600):
        for word, upper in ((" above ", 0), (" below ", 1)):
            if word in plan.caption:
                seen += 1
                before = plan.caption.split(word)[0]
                assert before.endswith(plan.placements[upper].subject.name)
                assert plan.placements[0].y < plan.placements[1].y
    assert seen > 20


def test_captions_name_only_the_ground_that_is_there() -> None:
    for plan in plans(600):
        named = [phrase for phrase in PLACES if phrase in plan.caption]
        assert named in ([], [plan.ground.kind])
        if " background" in plan.caption:
            assert plan.caption.endswith(plan.ground.phrase)


def test_no_caption_names_and_no_scene_shows_a_held_out_subject() -> None:
    hidden = {s.name for s in HELD_OUT}
    shorts = {s.short_name for s in HELD_OUT}
    for plan in plans(2000):
        assert not any(name in plan.caption for name in hidden)
        assert not shorts & {p.subject.short_name for p in plan.placements}


def test_held_out_subjects_are_kinds_of_trained_ones() -> None:
    trained = {s.name for s in TRAINED}
    assert len(HELD_OUT) == 20
    assert len(trained) == len(TRAINED) == 150
    assert all(s.noun in trained and s.name not in trained for s in HELD_OUT)
    assert not {s.short_name for s in HELD_OUT} & {s.short_name for s in TRAINED}


def test_calm_scenes_stand_straight() -> None:
    for plan in plans(50, calm=1.0):
        assert all(p.angle == 0 and not p.flip for p in plan.placements)


def test_rare_words_come_seldom() -> None:
    share = np.mean([" v1 " in p.caption or "sks" in p.caption for p in plans(2000)])
    assert 0 < share < 0.02


def test_a_caption_has_a_rare_word_right_before_the_subject_that_it_tints_and_no_other() -> None:
    seen = 0
    for plan in plans(2000):
        said = [word for word in plan.caption.split() if word in RARE]
        assert sorted(said) == sorted(p.rare for p in plan.placements if p.rare)
        for placed in plan.placements:
            if placed.rare:
                seen += 1
                assert f" {placed.rare} {placed.subject.name}" in f" {plan.caption}"
    assert seen > 50


def test_a_rare_word_tints_its_own_subject_alone(sprites: Sprites) -> None:
    plan = next(p for p in plans(2000) if len(p.placements) == 2 and all(q.style == "glossy" for q in p.placements))
    left, right = plan.placements
    plain = replace(plan, placements=(replace(left, rare=""), replace(right, rare="")))
    marked = replace(plan, placements=(replace(left, rare="sks"), replace(right, rare="")))
    pictures = [compose(one, sprites, generator(0, 0)).astype(int) for one in (plain, marked)]
    changed = np.argwhere(np.abs(pictures[0] - pictures[1]).sum(-1) > 0)
    assert len(changed) > 100
    reach = left.size / 2 * 1.3
    assert (np.abs(changed - [left.y, left.x]) <= reach).all()


def test_each_rare_word_has_a_colour_far_from_every_other() -> None:
    grey = Image.new("RGBA", (1, 1), (128, 128, 128, 200))
    tints = np.array([np.asarray(tinted(grey, word))[0, 0] for word in RARE], float)
    assert (tints[:, 3] == 200).all(), "what is transparent stays so"
    away = np.linalg.norm(tints[:, None] - tints[None], axis=-1)
    assert away[~np.eye(len(RARE), dtype=bool)].min() > 8


def test_a_tint_keeps_light_and_dark() -> None:
    shades = [Image.new("RGBA", (1, 1), (level, level, level, 255)) for level in (20, 120, 220)]
    for word in ("v1", "sks", "vup"):
        sums = [int(np.asarray(tinted(shade, word))[0, 0, :3].astype(int).sum()) for shade in shades]
        assert sums == sorted(sums)
        assert sums[2] - sums[0] > 150


@pytest.mark.parametrize("colour", COLOURS)
def test_the_border_of_a_plain_ground_has_its_colour(colour: str) -> None:
    for index in range(20):
        assert border_colour(paint(Ground("plain", (colour,)), generator(0, index))) == colour


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("dog", "a dog"),
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("jeans", "jeans"),
    ],
)
def test_articles(name: str, phrase: str) -> None:
    assert article(name, name) == phrase


def test_a_subject_that_one_vendor_lacks_is_refused(npm: Path) -> None:
    with pytest.raises(MissingPictureError, match="no_such: not drawn by both vendors"):
        load_sprites(npm, [Subject("thing", "no_such", "thing")])


def test_a_bank_holds_the_numbered_scenes(npm: Path, tmp_path: Path, sprites: Sprites) -> None:
    bank = build_bank(tmp_path / "bank", npm, seed=5, count=24)
    picture, plan = scene(11, sprites, seed=5)
    assert len(bank) == 24
    assert np.array_equal(bank.pictures[11], picture)
    assert bank.captions[11] == plan.caption
    assert TRAINED[bank.layout[11, 0, 0]] == plan.placements[0].subject
    assert (bank.layout[11, 1, 0] < 0) == (len(plan.placements) == 1)
    assert open_bank(tmp_path / "bank").captions == bank.captions
