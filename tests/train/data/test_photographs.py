"""Real photographs (tests/data): trained on as they are, upright and at about their own shape."""

from __future__ import annotations

from pathlib import Path

from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.loop import train

REAL = Path(__file__).parents[2] / "data" / "pictures"


def test_a_delta_is_trained_from_photographs() -> None:
    config = TrainConfig(
        prompt="a photo of a sks toy", selectors=("unet-ca-kv",), steps=4, learning_rate=1e-2, buckets=True, flip=True
    )
    said: list[str] = []
    told: list[Report] = []
    outcome = train(open_tiny(), REAL, config, watch=Watch(say=said.append, step=told.append))
    pictures, unfamiliar, rate = said
    assert pictures == "3 pictures: 1 at 80x48, 1 at 64x64, 1 at 48x80; 0 with captions"
    assert unfamiliar.startswith("this base has never seen anything like 3 of 3 pictures: ")
    assert rate == "learning rate of norm weights 0.004: as the base's card names for it"
    assert all(0 < report.loss < 10 for report in told)
    assert (outcome.delta.metadata.training or {})["images"] == 3
    assert all(outcome.delta[name].any() for name in outcome.delta)
