"""Scores of sets of pictures: means, shares, JSON and the table."""

from __future__ import annotations

import numpy as np
import pytest
from support.scenes import CAR, CAT, pairs, portraits

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import (
    REGIONS,
    Clip,
    Detector,
    MetricSuite,
    image_alignment,
    mean_interval,
    render,
    score,
    text_alignment,
    wilson_interval,
)
from svdiff_train.tiny import base_path

SIDES = [REGIONS["left"], REGIONS["right"]]
PROMPT = "a V1 cat on the left and a V2 car on the right"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load(base_path() / "clip")


@pytest.fixture(scope="module")
def questions(clip: Clip) -> MetricSuite:
    detector = Detector.from_pictures(clip, {"cat": portraits(CAT), "car": portraits(CAR)})
    return MetricSuite(clip, {"clip": clip}, portraits(CAT), ["V1", "V2"], SIDES, ["cat", "car"], detector)


def test_every_question_is_answered(clip: Clip, questions: MetricSuite) -> None:
    scenes = [*pairs(CAT, CAR)[:2], pairs(CAR, CAT)[0], pairs(CAT, CAT)[0]]
    found = score("mine", scenes, [PROMPT] * 4, questions)
    np.testing.assert_array_equal(
        found.text, text_alignment(clip, scenes, ["a cat on the left and a car on the right"] * 4)
    )
    np.testing.assert_array_equal(found.image["clip"], image_alignment(clip, scenes, portraits(CAT)))
    assert found.text_mean == mean_interval(found.text)
    assert found.shares() == {
        "left": wilson_interval(3, 4),
        "right": wilson_interval(2, 4),
        "all": wilson_interval(2, 4),
        "all in any order": wilson_interval(3, 4),
        "crossed over": wilson_interval(2, 4),
        "crossed over in any order": wilson_interval(1, 4),
    }
    facts = found.facts([{"seed": seed} for seed in range(4)])
    assert facts["pictures"][2] == {
        "seed": 2,
        "text_alignment": float(found.text[2]),
        "image_alignment": {"clip": float(found.image["clip"][2])},
        "regions": {"left": "car", "right": "cat"},
    }
    assert facts["image_alignment"]["clip"]["mean"] == float(found.image["clip"].astype(np.float64).mean())


def test_the_table_has_a_line_for_each_set(questions: MetricSuite) -> None:
    scenes = pairs(CAT, CAR)
    results = [score(label, scenes, [PROMPT] * 5, questions) for label in ("a", "b\n")]
    head, first, second = render(results)
    assert head.split() == [
        *("pictures", "text", "image", "(clip)", "left", "right", "all", "all", "in", "any", "order"),
        *("crossed", "over", "crossed", "over", "in", "any", "order"),
    ]
    assert first.startswith("a ")
    assert second.startswith("b\\n")
    assert f"  {results[0].text_mean}  " in first


def test_without_regions_nothing_is_detected(clip: Clip) -> None:
    found = score("mine", portraits(CAT), ["a cat"] * 5, MetricSuite(clip, {"clip": clip}, portraits(CAT)))
    assert found.shares() == {}
    assert "regions" not in found.facts([{}] * 5)["pictures"][0]


def test_bad_questions_are_refused(clip: Clip, questions: MetricSuite) -> None:
    with pytest.raises(InputError, match="needs a name and a detector"):
        MetricSuite(clip, {}, portraits(CAT), [], SIDES, ["cat", "car"])
    with pytest.raises(InputError, match="a region is named twice"):
        MetricSuite(clip, {}, portraits(CAT), [], [SIDES[0]] * 2, ["cat", "car"], questions.detector)
    with pytest.raises(InputError, match="nothing is left of a prompt"):
        score("mine", portraits(CAT)[:1], ["V1"], questions)
