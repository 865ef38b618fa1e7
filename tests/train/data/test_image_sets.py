"""Pictures: attached equals baked, whatever else is in the batch, and sheets are laid out as labelled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support.models import base_delta

from svdiff_delta import Delta, attach, bake, zero_delta
from svdiff_delta.errors import BaseError, InputError
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate, sheet
from svdiff_train.tiny import base_path, open_tiny

SAMPLING = Sampling(steps=8, guidance=4.0)
FEW = replace(SAMPLING, steps=3)
"""For what is equal at each step."""
JOBS = [("a photo of a cat", 0), ("a photo of a house", 1)]


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_tiny(), "unet", size=0.05)


def baked(delta: Delta, folder: Path, dtype: str) -> Any:
    """Bake a delta, and load the folder to compute in float32; a half-precision text encoder says that it is one."""
    bake(open_tiny(), [delta], folder, dtype=dtype)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(a: list[Image.Image], b: list[Image.Image]) -> int:
    return max(int(np.abs(np.asarray(x, int) - np.asarray(y, int)).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_attached_and_baked_pictures_are_equal_within_two_steps_of_colour(
    tmp_path: Path, delta: Delta, exact: bool
) -> None:
    pipeline = load_pipeline(open_tiny())
    plain = generate(pipeline, JOBS, SAMPLING)
    with attach(pipeline, delta, exact=exact):
        attached = generate(pipeline, JOBS, SAMPLING)
    assert difference(attached, plain) > 20
    assert difference(attached, generate(baked(delta, tmp_path / "out", "F32"), JOBS, SAMPLING)) <= 2


def test_a_bake_in_float16_differs_from_one_in_float32_by_the_rounding_of_its_weights_alone(
    tmp_path: Path, delta: Delta
) -> None:
    rounded = baked(delta, tmp_path / "F32", "F32")
    rounded.unet.half().float()
    half = baked(delta, tmp_path / "F16", "F16")
    assert difference(generate(half, JOBS, FEW), generate(rounded, JOBS, FEW)) == 0


def test_a_zero_delta_paints_the_base_s_pictures() -> None:
    base = open_tiny()
    pipeline = load_pipeline(base)
    plain = generate(pipeline, JOBS, FEW)
    with attach(pipeline, zero_delta(base, "unet", "text_encoder.*")):
        assert difference(generate(pipeline, JOBS, FEW), plain) <= 1


def test_a_picture_does_not_depend_on_its_batch() -> None:
    pipeline = load_pipeline(open_tiny())
    together = generate(pipeline, JOBS, FEW)
    alone = [generate(pipeline, [job], FEW)[0] for job in JOBS]
    assert difference(together, alone) <= 1


def test_progress_counts_pictures() -> None:
    seen: list[tuple[int, int]] = []
    generate(load_pipeline(open_tiny()), JOBS, Sampling(steps=1, batch_size=1), lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]


def test_a_sheet_shows_every_picture_in_its_row_and_column() -> None:
    colours = [["red", "green"], ["blue", "yellow"], ["black", "purple"]]
    rows = [(f"row {r}", [Image.new("RGB", (16, 16), colour) for colour in row]) for r, row in enumerate(colours)]
    picture = sheet(rows, ["one", "two"], zoom=2)
    found = np.asarray(picture)
    for r, row in enumerate(colours):
        for c, colour in enumerate(row):
            x = picture.width - (2 - c) * (32 + 4) + 16
            y = picture.height - (3 - r) * (32 + 4) + 16
            assert tuple(found[y, x]) == tuple(np.asarray(Image.new("RGB", (1, 1), colour))[0, 0])


def test_a_component_alone_is_no_pipeline() -> None:
    from svdiff_delta import open_base

    with pytest.raises(BaseError, match="not a whole pipeline"):
        load_pipeline(open_base(base_path() / "unet"))


def test_steps_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Sampling(steps=0)
