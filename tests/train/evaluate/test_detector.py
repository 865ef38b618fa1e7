"""Which subject each side of a picture shows: on composed scenes, and on scores written by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from support.scenes import CAR, CAT, PAINTED, painted, pairs, portraits, side_by_side

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import REGIONS, Clip, Detection, Detector
from svdiff_train.tiny import base_path
from tools.build_tiny.clip import CROP, crops, image_features, name_prompts, text_features
from tools.build_tiny.scenes import batch
from tools.build_tiny.subjects import TRAINED
from tools.build_tiny.tokenizer import build_tokenizer, token_ids

NAMES = [subject.name for subject in TRAINED]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load(base_path() / "clip")


def test_words_name_both_sides(clip: Clip) -> None:
    truth = [*permutations(PAINTED, 2)]
    scenes = [side_by_side(painted(left), painted(right)) for left, right in truth]
    found = Detector.from_names(clip, NAMES).regions(scenes)
    assert found.labels.tolist() == [list(pair) for pair in truth]
    assert found.regions == ("left", "right")
    assert found.scores.shape == (len(truth), 2, len(NAMES))
    assert found.scores.dtype == np.float32


def test_pictures_tell_both_sides(clip: Clip) -> None:
    detector = Detector.from_pictures(clip, {CAT: portraits(CAT), CAR: portraits(CAR)})
    found = detector.regions([*pairs(CAT, CAR), *pairs(CAR, CAT), *pairs(CAT, CAT)])
    assert found.labels.tolist() == [[CAT, CAR]] * 5 + [[CAR, CAT]] * 5 + [[CAT, CAT]] * 5
    assert found.appear([CAT, CAR]).tolist() == [True] * 5 + [False] * 10
    assert found.appear([CAT, CAR], any_order=True).tolist() == [True] * 10 + [False] * 5


def test_scores_are_those_of_the_judge(clip: Clip) -> None:
    scenes = pairs(CAT, CAR)
    model, pixels = clip._model, torch.from_numpy(batch(np.stack([np.asarray(scene) for scene in scenes])))
    with torch.no_grad():
        names = text_features(model, token_ids(build_tokenizer(), name_prompts()))
        cut = [crops(pixels, torch.tensor([[x, 32.0]] * 5), torch.full((5,), float(CROP))) for x in (16, 48)]
        expected = np.stack([(image_features(model, part) @ names.T).numpy() for part in cut], 1)
    found = Detector.from_names(clip, NAMES).regions(scenes)
    np.testing.assert_allclose(found.scores, expected, atol=5e-3)  # crops are rounded to colours


def test_concepts_are_compared_by_their_mean_vector(clip: Clip) -> None:
    mean = clip.image_features(portraits(CAT)).astype(np.float64).mean(0)
    expected = clip.image_features(portraits(CAR)) @ (mean / np.linalg.norm(mean))
    detector = Detector.from_pictures(clip, {CAT: portraits(CAT), CAR: portraits(CAR)})
    found = detector.regions(portraits(CAR), [REGIONS["whole"]])
    np.testing.assert_allclose(found.scores[:, 0, 0], expected, atol=1e-6)
    assert set(found.labels.ravel()) == {CAR}


def by_hand(*pictures: list[list[float]]) -> Detection:
    return Detection(("left", "right"), ("dog", "cat", "house"), np.asarray(pictures, np.float32))


CASES = [
    ([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]], True, True, [False, False], [False, False]),  # as asked
    ([[0.1, 0.9, 0.0], [0.9, 0.1, 0.0]], False, True, [True, True], [False, False]),  # the other way round
    ([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]], False, False, [False, True], [False, True]),  # two dogs
    ([[0.5, 0.6, 0.0], [0.1, 0.9, 0.0]], False, False, [True, False], [True, False]),  # two cats
    ([[0.5, 0.1, 0.9], [0.1, 0.9, 0.0]], False, False, [False, False], [False, False]),  # a house, no cat's features
]


@pytest.mark.parametrize(("scores", "both", "in_any_order", "crossed", "crossed_in_any_order"), CASES)
def test_what_counts_as_both_and_as_crossed(
    scores: list[list[float]], both: bool, in_any_order: bool, crossed: list[bool], crossed_in_any_order: list[bool]
) -> None:
    found, asked = by_hand(scores), ["dog", "cat"]
    assert found.appear(asked).tolist() == [both]
    assert found.appear(asked, any_order=True).tolist() == [in_any_order]
    assert found.crossed(asked).tolist() == [crossed]
    assert found.crossed(asked, any_order=True).tolist() == [crossed_in_any_order]


def test_two_of_one_kind_cannot_cross_over() -> None:
    assert by_hand([[0.1, 0.9, 0.0], [0.1, 0.9, 0.0]]).crossed(["dog", "dog"]).tolist() == [[False, False]]


def test_bad_questions_are_refused(clip: Clip) -> None:
    with pytest.raises(InputError, match="one candidate"):
        Detector.from_names(clip, ["dog"])
    with pytest.raises(InputError, match="stands there twice"):
        Detector.from_names(clip, ["dog", "dog"])
    with pytest.raises(InputError, match="no regions"):
        Detector.from_names(clip, ["dog", "cat"]).regions(portraits(CAT), [])
    with pytest.raises(InputError, match="nothing to measure"):
        Detector.from_names(clip, ["dog", "cat"]).regions([])
    found = by_hand([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    with pytest.raises(InputError, match="bird: is not among the candidates"):
        found.appear(["dog", "bird"])
    with pytest.raises(InputError, match="2 regions have 1 subjects"):
        found.crossed(["dog"])
