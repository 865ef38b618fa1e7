"""The running mean of what is trained: its formula, what it gives, and how it goes on."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from support.descent import distance
from torch import nn

from svdiff_delta import load, save
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.checkpoint import load_state, states
from svdiff_train.training.ema import Ema
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat",
    selectors=("unet-ca-kv",),
    steps=5,
    learning_rate=5e-2,
    resolution=32,
    use_ema=True,
    ema_decay=0.25,
)
GOOD, BAD = torch.tensor(False), torch.tensor(True)


@pytest.mark.parametrize("decay", [0.9999, 0.25, 0.0])
def test_the_mean_is_that_of_diffusers(decay: float) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    ours, theirs = Ema({"a": parameter}, decay), EMAModel([parameter], decay=decay)
    for number in range(1, 8):
        with torch.no_grad():
            parameter.copy_(torch.tensor([1.0, -2.0, 0.5]) * number**2)
        ours.step(number, GOOD)
        theirs.step([parameter])
    torch.testing.assert_close(ours.means["a"], theirs.shadow_params[0])


def test_a_bad_step_leaves_the_mean_and_the_mean_leaves_what_is_trained() -> None:
    parameter = nn.Parameter(torch.ones(2))
    mean = Ema({"a": parameter}, 0.5)
    parameter.data.fill_(5.0)
    mean.step(3, BAD)
    with mean.applied():
        assert torch.equal(parameter, torch.ones(2))
    assert torch.equal(parameter, torch.full((2,), 5.0))


def test_the_result_is_the_mean_of_the_steps_and_the_state_holds_both(tmp_path: Path) -> None:
    plain, every = replace(CONFIG, use_ema=False, ema_decay=None), Keeping(folder=tmp_path / "plain", results_every=1)
    train(open_tiny(), PICTURES, plain, keeping=every)
    shifts = {number: load(tmp_path / f"plain/steps/step-{number:06d}.safetensors") for number in range(1, 6)}
    outcome = train(open_tiny(), PICTURES, CONFIG, keeping=Keeping(folder=tmp_path))
    for name in outcome.delta:
        mean = np.zeros(outcome.delta[name].shape)
        for number in range(1, 6):
            kept = 0.0 if number == 1 else min(0.25, number / (9 + number))
            mean += (1 - kept) * (shifts[number][name] - mean)
        np.testing.assert_allclose(outcome.delta[name], mean, rtol=1e-5, atol=1e-7)  # a few float32 roundings each
    assert distance(outcome.delta, shifts[5]) > 0.01
    kept = load_state(states(tmp_path / "state")[-1]).tensors
    assert {key.partition("/")[2] for key in kept if key.startswith("ema/")} == set(outcome.delta)
    recorded = outcome.delta.metadata.training or {}
    assert (recorded["use_ema"], recorded["ema_decay"]) == (True, 0.25)


def test_a_run_that_was_interrupted_goes_on_with_its_mean_bit_for_bit(tmp_path: Path) -> None:
    def interrupt(report: Report) -> None:
        if report.step == 3:
            signal.raise_signal(signal.SIGTERM)

    keeping = Keeping(folder=tmp_path / "run", resume=True)
    assert train(open_tiny(), PICTURES, CONFIG, watch=Watch(step=interrupt), keeping=keeping).steps == 3
    with pytest.raises(TrainError, match="use_ema"):
        train(open_tiny(), PICTURES, replace(CONFIG, use_ema=False, ema_decay=None), keeping=keeping)
    save(train(open_tiny(), PICTURES, CONFIG, keeping=keeping).delta, tmp_path / "again")
    save(train(open_tiny(), PICTURES, CONFIG).delta, tmp_path / "whole")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"ema_decay": 0.9}, "ema_decay without use_ema does nothing"),
        ({"use_ema": True, "ema_decay": 1.0}, "ema_decay must be from 0 to below 1"),
        ({"use_ema": True, "ema_decay": -0.1}, "ema_decay must be"),
    ],
)
def test_settings_of_the_mean_without_meaning_are_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        TrainConfig(prompt="a cat", **fields)  # type: ignore[arg-type]
