"""Other ways to compute a run, in fp16 or through torch.compile: finite losses, and about what float32 learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from support.descent import ROUNDED, distance, greatest_distance, plain_descent
from support.pipelines import small_sd2
from torch._dynamo.utils import counters

from svdiff_delta import Delta, open_base
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.loop import train

CONFIG = TrainConfig(prompt="a photo of a sks cat", steps=3, learning_rate=1e-2, learning_rate_1d=1e-2, batch_size=2)


def run(base: Path, config: TrainConfig) -> tuple[Delta, list[float]]:
    told: list[Report] = []
    outcome = train(open_base(base), pictures_path("black_cat"), config, watch=Watch(step=told.append))
    return outcome.delta, [report.loss for report in told]


def test_a_run_in_fp16_scales_its_loss_and_learns_what_float32_does(tmp_path: Path) -> None:
    small_sd2().save_pretrained(tmp_path)
    (plain, losses), (half, theirs) = (run(tmp_path, replace(CONFIG, mixed_precision=kind)) for kind in ("no", "fp16"))
    # No gradient overflowed at the scaler's first factor, 65536: a step that is left out would show as half of δ.
    assert distance(half, plain) < 0.1
    assert distance(half, plain) > 0
    np.testing.assert_allclose(theirs, losses, rtol=2e-3)


def graphs() -> int:
    """How many graphs were compiled."""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def compiled() -> Iterator[None]:
    """Count from nothing what is compiled."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script_method.*:DeprecationWarning")
@pytest.mark.usefixtures("compiled")
def test_a_compiled_run_learns_what_one_that_is_not_compiled_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_descent(monkeypatch)
    pipeline = small_sd2()
    torch.manual_seed(0)
    one_block = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline.register_modules(unet=one_block)  # compiling takes about as long as it has layers
    pipeline.save_pretrained(tmp_path)
    plain, losses = run(tmp_path, CONFIG)
    assert graphs() == 0
    found, theirs = run(tmp_path, replace(CONFIG, compile=True))
    assert graphs() == 1
    np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    assert greatest_distance(found, plain) < ROUNDED
