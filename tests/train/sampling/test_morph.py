"""From one subject to another: both ends are the subjects themselves, for deltas and for tuned models."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.models import base_delta
from support.tuned import tuned_base

from svdiff_delta import interpolate
from svdiff_delta.errors import InputError
from svdiff_train.sampling.adapter_stack import AdapterStack, Part
from svdiff_train.sampling.morph import Frame, gif_bytes, morph, strip
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.sampling.weight_difference import open_difference
from svdiff_train.tiny import open_tiny

SAMPLING = Sampling(steps=2, guidance=4.0)
PROMPT = "a photo of a cat"


def deltas(folder: Path) -> list[Part]:
    del folder
    return [base_delta(open_tiny(), "mid-ca", size=0.5, seed=seed) for seed in (1, 2)]


def tuned(folder: Path) -> list[Part]:
    return [open_difference(tuned_base(folder / str(seed), seed), open_tiny()) for seed in (1, 2)]


def alone(pipeline: Any, part: Part) -> Image.Image:
    with AdapterStack(pipeline, open_tiny(), [part]) as stage, stage.active([1.0]):
        (image,) = generate(pipeline, [(PROMPT, 3)], SAMPLING)
    return image


@pytest.mark.parametrize("parts", [deltas, tuned])
def test_the_ends_are_the_pictures_of_each_alone(parts: Any, tmp_path: Path) -> None:
    a, b = parts(tmp_path)
    pipeline: Any = load_pipeline(open_tiny())
    frames = morph(pipeline, open_tiny(), a, b, PROMPT, seed=3, count=3, sampling=SAMPLING)
    assert [frame.alpha for frame in frames] == [0.0, 0.5, 1.0]
    assert frames[0].image.tobytes() == alone(pipeline, b).tobytes()
    assert frames[2].image.tobytes() == alone(pipeline, a).tobytes()
    assert len({frame.image.tobytes() for frame in frames}) == 3


def test_between_the_ends_deltas_are_interpolated() -> None:
    a, b = (base_delta(open_tiny(), "mid-ca", size=0.5, seed=seed) for seed in (1, 2))
    pipeline: Any = load_pipeline(open_tiny())
    frames = morph(pipeline, open_tiny(), a, b, PROMPT, seed=3, count=4, sampling=SAMPLING)
    wanted = alone(pipeline, interpolate(a, b, 1 / 3))
    # The file of an interpolation is rounded to float32.
    assert np.abs(np.asarray(frames[1].image, int) - np.asarray(wanted, int)).max() <= 1


def test_a_way_needs_two_ends() -> None:
    a = base_delta(open_tiny(), "mid-ca")
    with pytest.raises(InputError, match="at least 2 pictures, not 1"):
        morph(load_pipeline(open_tiny()), open_tiny(), a, a, PROMPT, count=1)


FRAMES = [Frame(index / 2, Image.new("RGB", (40, 40), colour)) for index, colour in enumerate(("red", "green", "blue"))]


def test_a_strip_shows_every_picture_under_its_alpha() -> None:
    pixels = np.asarray(strip(FRAMES, "b → a"))
    for frame in FRAMES:
        assert (pixels == np.asarray(frame.image)[0, 0]).all(-1).sum() == 40 * 40
    assert [frame.label for frame in FRAMES] == ["α = 0", "α = 0.5", "α = 1"]
    unlabelled = strip([Frame(0.0, frame.image) for frame in FRAMES], "b → a")
    assert (np.asarray(unlabelled) != pixels).any()


def test_an_animation_has_a_frame_per_picture_and_says_how_it_was_painted() -> None:
    raw = gif_bytes(FRAMES, {"prompt": "ein Häuschen", "steps": 2})
    assert raw == gif_bytes(FRAMES, {"steps": 2, "prompt": "ein Häuschen"})
    with Image.open(BytesIO(raw)) as image:
        assert (image.n_frames, image.info["loop"]) == (3, 0)
        assert json.loads(image.info["comment"]) == {"prompt": "ein Häuschen", "steps": 2}
