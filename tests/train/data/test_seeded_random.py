"""Random draws depend on seed, step, sample and purpose, and on nothing else."""

from __future__ import annotations

import torch

from svdiff_train.data import seeded_random


def test_the_same_draw_is_the_same_numbers() -> None:
    assert torch.equal(seeded_random.noise((3, 4), 1, 2, 3), seeded_random.noise((3, 4), 1, 2, 3))


def test_each_of_seed_step_sample_and_purpose_changes_the_draw() -> None:
    drawn = [
        seeded_random.noise((8,), *place, purpose)
        for place, purpose in [((0, 0, 0), "a"), ((1, 0, 0), "a"), ((0, 1, 0), "a"), ((0, 0, 1), "a"), ((0, 0, 0), "b")]
    ]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 5


def test_a_draw_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    seeded_random.noise((3,), 1, 2, 3)
    assert torch.equal(torch.rand(1), expected)


def test_whole_numbers_reach_every_value_below_the_limit() -> None:
    assert {seeded_random.integer(5, 0, step, 0, "picture") for step in range(200)} == set(range(5))
