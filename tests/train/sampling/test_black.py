"""Pictures that are black because a number on their way was none."""

from __future__ import annotations

import pytest
from PIL import Image
from support.served import pipeline

from svdiff_delta._util import warned
from svdiff_delta.errors import TensorError
from svdiff_train.sampling.black import check_black
from svdiff_train.sampling.sample import Sampling, generate

BLACK, WHITE = (Image.new("RGB", (2, 2), colour) for colour in ("black", "white"))
JOBS = [("a dog", 3), ("a cat", 4)]


def test_a_picture_of_no_numbers_is_refused_and_the_next_is_painted() -> None:
    too_much = Sampling(steps=1, guidance=1e300)
    with pytest.raises(TensorError, match=r"^the picture of 'a dog', seed 3, is black: a number on its way") as error:
        generate(pipeline(), JOBS[:1], too_much)
    assert error.value.fix is not None
    assert error.value.fix.startswith('paint with `dtype="F32"`, lower `guidance`')
    (picture,) = generate(pipeline(), JOBS[:1], Sampling(steps=1))
    assert picture.getbbox() is not None


def test_where_it_is_no_error_it_is_painted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_SAID", set())
    with pytest.warns(warned.DeltaWarning, match="^the picture of 'a dog', seed 3, is black"):
        (picture,) = generate(pipeline(), JOBS[:1], Sampling(steps=1, guidance=1e300), strict=False)
    assert picture.getbbox() is None


@pytest.mark.parametrize("black", [BLACK, [WHITE, BLACK]], ids=["a picture", "a clip with a black frame"])
def test_the_one_that_is_black_is_named(black: object) -> None:
    with pytest.raises(TensorError, match="'a cat', seed 4"):
        check_black([WHITE, black], JOBS, strict=True)


def test_pictures_that_are_not_black_are_said_to_be_so_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_SAID", set())
    with pytest.warns(warned.DeltaWarning, match="^a number on the way to a picture was none"):
        check_black([WHITE, [WHITE, WHITE]], JOBS, strict=True)
