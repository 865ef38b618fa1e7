"""What a run leaves on its way: states, results to choose from, pictures, trackers' logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from svdiff_delta import load
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.sampling.sample import Sampling
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.checkpoint import states
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import plan, train
from svdiff_train.training.validation import Validation

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(prompt="a photo of a sks cat", selectors=("unet-ca-kv",), steps=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of four steps left that kept everything."""
    folder = tmp_path_factory.mktemp("kept")
    train(
        open_tiny(),
        PICTURES,
        CONFIG,
        keeping=Keeping(folder=folder, every=1, newest=3, results_every=2),
        validation=Validation(prompts=("a cat", "a dog"), every=3, sampling=Sampling(steps=2)),
        trackers=["tensorboard"],
    )
    return folder


def test_the_newest_states_stay(folder: Path) -> None:
    assert [path.stem for path in states(folder / "state")] == ["step-000002", "step-000003", "step-000004"]


def test_results_stay_to_choose_from(folder: Path) -> None:
    found = {path.stem: load(path) for path in sorted((folder / "steps").iterdir())}
    assert {name: (delta.metadata.training or {})["steps"] for name, delta in found.items()} == {
        "step-000002": 2,
        "step-000004": 4,
    }


def test_pictures_are_painted_on_the_way_and_at_the_end(folder: Path) -> None:
    found = sorted(path.name for path in (folder / "validation").iterdir())
    assert found == ["step-000003-0.png", "step-000003-1.png", "step-000004-0.png", "step-000004-1.png"]
    with Image.open(folder / "validation" / found[0]) as picture:
        assert picture.size == (64, 64)


def test_tensorboard_gets_loss_rate_and_pictures(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = (folder / "svdiff").glob("events.out.tfevents.*")
    events = EventAccumulator(str(log)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "dead_shifts"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) >= {"a cat", "a dog"}


def test_every_step_is_told_of() -> None:
    told: list[Report] = []
    train(open_tiny(), PICTURES, replace(CONFIG, steps=2), watch=Watch(step=told.append))
    assert [(report.step, report.steps, report.rate) for report in told] == [(1, 2, 1e-2), (2, 2, 1e-2)]
    assert all(report.memory > 1e8 and report.dead is not None for report in told)


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path: Path) -> None:
    keeping = Keeping(folder=tmp_path)
    with pytest.raises(TrainError, match="the loss is nan at step 2"):
        train(open_tiny(), PICTURES, replace(CONFIG, learning_rate=1e30), keeping=keeping)
    assert [path.stem for path in states(keeping.states)] == ["step-000001"]


def test_a_plan_says_what_a_run_would_be_and_writes_nothing() -> None:
    found = plan(open_tiny(), PICTURES, CONFIG)
    assert (found["images"], found["resolution"], found["selectors"]) == (5, 64, ["unet-ca-kv"])
    assert found["weights"] > 0


@pytest.mark.parametrize("fields", [{"prompts": ()}, {"prompts": ("a cat",), "every": 0}])
def test_validation_needs_prompts_and_steps(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Validation(**fields)  # type: ignore[arg-type]
