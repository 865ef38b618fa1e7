"""Runs with several concepts on the embedded base: every method, what is recorded, repeated, resumed and refused."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.descent import ROUNDED, greatest_distance, plain_descent

from svdiff_delta import save
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import base_path, open_tiny, pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import plan, train
from svdiff_train.training.outcome import Outcome

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

CAT = Concept(pictures_path("black_cat"), "a photo of a V1 cat", "a photo of a cat")
CAR = Concept(pictures_path("police_car"), "a photo of a V2 car", "a photo of a car")
CONFIG = TrainConfig(
    concepts=(CAT, CAR), steps=3, class_images=2, learning_rate=1e-2, selectors=("unet-ca-kv",), unmix_weight=1.0
)
ALONE = replace(
    CONFIG, concepts=(replace(CAT, class_prompt=None, token="V1"), replace(CAR, class_prompt=None, token="V2"))
)


def run(config: TrainConfig, **more: Any) -> Outcome:
    return train(open_tiny(), None, config, **more)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of painted classes."""
    return tmp_path_factory.mktemp("classes")


@pytest.fixture(scope="module")
def outcome(classes: Path) -> Outcome:
    return run(CONFIG, class_folder=classes)


def test_the_run_is_recorded_without_paths(outcome: Outcome) -> None:
    training = dict(outcome.delta.metadata.training or {})
    assert training["concepts"] == [
        {"prompt": "a photo of a V1 cat", "class_prompt": "a photo of a cat"},
        {"prompt": "a photo of a V2 car", "class_prompt": "a photo of a car"},
    ]
    assert (training["images"], training["mix_probability"], training["unmix_weight"]) == ([5, 5], 0.6, 1.0)
    assert "prompt" not in training
    assert str(CAT.images) not in str(training)


def test_each_class_is_painted_into_a_folder_of_its_own(outcome: Outcome, classes: Path) -> None:
    found = sorted(classes.iterdir())
    assert [path.name.rpartition("-")[0] for path in found] == ["a-photo-of-a-car", "a-photo-of-a-cat"]
    assert all(sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000001.png"] for folder in found)


@pytest.mark.slow
def test_concepts_of_one_class_share_its_pictures(tmp_path: Path) -> None:
    painted: list[tuple[int, int]] = []
    car = replace(CAR, prompt="a photo of a V2 cat", class_prompt=CAT.class_prompt)
    config = replace(CONFIG, concepts=(CAT, car), steps=1, unmix_weight=None)
    run(config, class_folder=tmp_path, watch=Watch(class_images=lambda *done: painted.append(done)))
    assert len([*tmp_path.iterdir()]) == 1
    assert painted == [(2, 2)]


@pytest.mark.parametrize("method", ["full", "lora", "kv"])
def test_every_method_learns_two_concepts(method: Any, classes: Path, tmp_path: Path) -> None:
    told: list[Report] = []
    config = replace(CONFIG, method=method, selectors=None, batch_size=1)
    done = run(config, class_folder=classes, watch=Watch(step=told.append))
    assert [report.step for report in told] == [1, 2, 3]
    assert all(np.isfinite(report.loss) for report in told)
    done.result.save(tmp_path / "out")
    assert any((tmp_path / "out").rglob("*.safetensors"))


def test_custom_diffusion_changes_the_embedding_of_every_token(tmp_path: Path) -> None:
    run(replace(ALONE, method="kv", selectors=None, batch_size=1, unmix_weight=None)).result.save(tmp_path / "kv")
    before, after = (
        load_file(folder / "text_encoder" / "model.safetensors") for folder in (base_path(), tmp_path / "kv")
    )
    (key,) = [key for key in before if not torch.equal(before[key].float(), after[key].float())]
    rows = (before[key].float() != after[key].float()).any(1).nonzero().flatten().tolist()
    pipeline: Any = load_pipeline(open_tiny())
    assert sorted(pipeline.tokenizer.convert_ids_to_tokens(rows)) == ["v1", "v2"]


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def interrupt(report: Report) -> None:
        if report.step == 2:
            signal.raise_signal(signal.SIGTERM)

    config = replace(ALONE, steps=5, flip=True)
    keeping = Keeping(folder=tmp_path / "run", every=100, resume=True)
    first = run(config, watch=Watch(step=interrupt), keeping=keeping)
    assert (first.steps, first.signal) == (2, signal.SIGTERM)
    save(run(config, keeping=keeping).delta, tmp_path / "again")
    save(run(config).delta, tmp_path / "whole")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_resuming_with_other_concepts_or_pictures_is_refused(tmp_path: Path) -> None:
    keeping = Keeping(folder=tmp_path, resume=True)
    run(replace(ALONE, steps=1), keeping=keeping)
    swapped = (ALONE.subjects()[0], replace(ALONE.subjects()[1], images=CAT.images))
    with pytest.raises(TrainError, match=r"was made with other settings: pictures \("):
        run(replace(ALONE, concepts=swapped), keeping=keeping)
    renamed = (ALONE.subjects()[0], replace(ALONE.subjects()[1], phrase="the V2 car"))
    with pytest.raises(TrainError, match=r"was made with other settings: concepts \("):
        run(replace(ALONE, concepts=renamed), keeping=keeping)


def test_two_batches_of_one_equal_one_batch_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_descent(monkeypatch)
    config = replace(ALONE, steps=2, learning_rate=0.1, max_grad_norm=1e9)  # a clipped gradient would hide its length
    one, two = (run(replace(config, batch_size=size, accumulate=2 // size)).delta for size in (2, 1))
    assert greatest_distance(two, one) < ROUNDED


@pytest.mark.parametrize(
    "setting",
    [{"mix_probability": 0.0, "unmix_weight": 0.0}, pytest.param({"unmix_weight": 0.0}, marks=pytest.mark.slow)],
)
def test_mixing_and_unmixing_change_what_is_learned(setting: dict[str, Any]) -> None:
    config = replace(ALONE, batch_size=2, mix_probability=0.9, unmix_weight=100.0)
    plain, other = (run(each).delta for each in (config, replace(config, **setting)))
    assert any(not np.array_equal(plain[name], other[name]) for name in plain)


def test_one_concept_is_the_run_that_a_prompt_and_a_folder_describe(tmp_path: Path) -> None:
    (cat, _) = ALONE.subjects()
    alone = TrainConfig(concepts=(cat,), steps=2, learning_rate=1e-2, selectors=("unet-ca-kv",))
    usual = replace(alone, concepts=None, prompt=cat.prompt, token="V1")
    one, other = run(alone).delta, train(open_tiny(), cat.images, usual).delta
    assert all(np.array_equal(one[name], other[name]) for name in other)


def test_what_was_found_is_said_of_every_concept() -> None:
    found = plan(open_tiny(), None, ALONE)
    assert found["images"] == [5, 5]
    assert [line.partition(":")[0] for line in found["pictures"]] == ["a V1 cat", "a V2 car"]


@pytest.mark.parametrize(("images", "concepts"), [(None, None), (CAT.images, (CAT, CAR))])
def test_pictures_are_named_once(images: Path | None, concepts: tuple[Concept, ...] | None) -> None:
    config = TrainConfig(concepts=concepts) if concepts else TrainConfig(prompt="a photo of a V1 cat")
    with pytest.raises(InputError, match="name one folder, or concepts that name their own"):
        plan(open_tiny(), images, config)


def test_a_caption_without_its_concepts_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(next(CAR.images.glob("*.png")).read_bytes())
    (tmp_path / "a.txt").write_text("a V1 car")
    with pytest.raises(InputError, match=r"a\.png: its caption 'a V1 car' does not have the token 'V2'"):
        plan(open_tiny(), None, replace(CONFIG, concepts=(CAT, replace(CAR, images=tmp_path))))


@pytest.mark.parametrize(
    ("setting", "tolerance"), [({"gradient_checkpointing": True}, 1e-5), ({"mixed_precision": "bf16"}, 0.05)]
)
def test_the_first_loss_is_about_the_same_however_it_is_computed(setting: dict[str, Any], tolerance: float) -> None:
    told: list[float] = []
    config = replace(ALONE, steps=1, mix_probability=1.0, unmix_weight=100.0)
    for each in (config, replace(config, **setting)):
        run(each, watch=Watch(step=lambda report: told.append(report.loss)))
    assert told[1] == pytest.approx(told[0], rel=tolerance)
