"""States of a run: written, kept, read, compared; and a run that goes on equals one that never stopped."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.forked import forked
from torch import nn

from svdiff_delta import load, save
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.checkpoint import check_same, load_state, restore, save_state, states
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat",
    selectors=("unet-ca-kv",),
    steps=6,
    learning_rate=5e-2,
    resolution=32,
    schedule="cosine",
    flip=True,
)


def stepped(seed: int) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(3, generator=generator)) for name in ("b", "a")}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    sum((parameter**2).sum() for parameter in parameters.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return parameters, optimizer


def test_a_state_brings_back_values_and_moments(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 1, parameters, optimizer, {"seed": 0})
    others, theirs = stepped(1)
    restore(load_state(path), path, others, theirs)
    for name in parameters:
        assert torch.equal(parameters[name], others[name])
        assert all(
            torch.equal(value, theirs.state[others[name]][key])
            for key, value in optimizer.state[parameters[name]].items()
        )


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    first = save_state(tmp_path / "a", 1, parameters, optimizer, {"seed": 0})
    second = save_state(tmp_path / "b", 1, dict(reversed(parameters.items())), optimizer, {"seed": 0})
    assert first.read_bytes() == second.read_bytes()


def test_only_the_newest_stay(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    for step in (5, 10, 15):
        save_state(tmp_path, step, parameters, optimizer, {}, keep=2)
    assert [path.name for path in states(tmp_path)] == ["step-000010.safetensors", "step-000015.safetensors"]


def test_other_settings_are_listed(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 1, parameters, optimizer, {"seed": 0, "prompt": "a", "steps": 5})
    with pytest.raises(TrainError, match=r"prompt \(was 'a', is 'b'\), seed \(was 0, is 1\): give the same"):
        check_same(load_state(path), path, {"seed": 1, "prompt": "b", "steps": 5})


def test_a_run_may_become_longer(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 1, parameters, optimizer, {"steps": 5})
    check_same(load_state(path), path, {"steps": 50})


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_a_longer_run_on_a_schedule_that_ends_is_another_run(tmp_path: Path, schedule: str) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 1, parameters, optimizer, {"steps": 5, "schedule": schedule})
    with pytest.raises(TrainError, match=r"steps of the schedule \(was 5, is 50\): .*schedule_steps 5, for no more"):
        check_same(load_state(path), path, {"steps": 50, "schedule": schedule})
    check_same(load_state(path), path, {"steps": 3, "schedule_steps": 5, "schedule": schedule})


@pytest.mark.slow
def test_a_run_may_become_longer_on_a_schedule_that_was_planned_for_it(tmp_path: Path) -> None:
    planned = replace(CONFIG, steps=2, schedule="linear", schedule_steps=4)
    keeping = Keeping(folder=tmp_path / "run", resume=True)
    train(open_tiny(), PICTURES, planned, keeping=keeping)
    longer = replace(planned, steps=4, schedule_steps=None)
    save(train(open_tiny(), PICTURES, longer, keeping=keeping).delta, tmp_path / "longer")
    save(train(open_tiny(), PICTURES, longer).delta, tmp_path / "whole")
    assert (tmp_path / "longer").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_run_that_became_shorter_than_what_is_done_is_refused(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 4, parameters, optimizer, {"steps": 5})
    with pytest.raises(TrainError, match="has 4 steps behind it, more than the run's 3: set steps to 4 or more"):
        check_same(load_state(path), path, {"steps": 3})


@pytest.mark.parametrize(("before", "now"), [({"processes": 2}, {}), ({}, {"processes": 3})])
def test_a_run_of_other_processes_is_refused(tmp_path: Path, before: dict[str, int], now: dict[str, int]) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 1, parameters, optimizer, before)
    was, is_ = before.get("processes", 1), now.get("processes", 1)
    with pytest.raises(TrainError, match=rf"processes \(was {was}, is {is_}\): give the same \(processes {was}, which"):
        check_same(load_state(path), path, now)


def test_another_base_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    keeping, short = Keeping(folder=tmp_path / "run", resume=True), replace(CONFIG, schedule="constant", steps=1)
    train(open_tiny(), PICTURES, short, keeping=keeping)
    other = tmp_path / "other"
    shutil.copytree(open_tiny().path, other)
    file = next((other / "text_encoder").glob("*.safetensors"))  # not what is trained
    tensors = load_file(file)
    save_file({name: value * 1.01 for name, value in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(TrainError, match=r"other settings: base \(was "):
        train(open_base(other), PICTURES, replace(short, steps=2), keeping=keeping)


def test_other_pictures_of_the_class_are_refused(tmp_path: Path) -> None:
    prior = replace(CONFIG, class_prompt="a photo of a cat", class_images=1, schedule="constant", steps=1)
    keeping, folder = Keeping(folder=tmp_path / "run", resume=True), tmp_path / "class"
    train(open_tiny(), PICTURES, prior, keeping=keeping, class_folder=folder)
    Image.new("RGB", (64, 64)).save(folder / "000000.png")
    with pytest.raises(TrainError, match=r"other settings: pictures of a photo of a cat \(was "):
        train(open_tiny(), PICTURES, replace(prior, steps=2), keeping=keeping, class_folder=folder)


def test_what_an_interrupted_run_says_of_itself_repeats_it(tmp_path: Path) -> None:
    def interrupt(report: Report) -> None:
        if report.step == 2:
            signal.raise_signal(signal.SIGTERM)

    keeping = Keeping(folder=tmp_path / "run", results_every=1)
    early = train(open_tiny(), PICTURES, CONFIG, watch=Watch(step=interrupt), keeping=keeping).delta
    said = dict(early.metadata.training or {})
    assert (said["steps"], said["schedule_steps"]) == (2, CONFIG.steps)
    again = train(open_tiny(), PICTURES, TrainConfig.from_facts({**said, "images": 0})).delta
    save(early, tmp_path / "early")
    save(again, tmp_path / "again")
    assert (tmp_path / "early").read_bytes() == (tmp_path / "again").read_bytes()
    kept = load(tmp_path / "run/steps/step-000001.safetensors").metadata.training or {}
    assert (kept["steps"], kept["schedule_steps"]) == (1, CONFIG.steps)


def test_a_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    parameters, optimizer = stepped(0)
    path = save_state(tmp_path, 1, parameters, optimizer, {})
    with pytest.raises(TrainError, match="b is not what this run trains"):
        restore(load_state(path), path, {"a": parameters["a"]}, optimizer)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x10" + bytes(7) + b'{"a":1}         '])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "step-000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no state of a training run"):
        load_state(path)


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    keeping = Keeping(folder=tmp_path, resume=True)
    train(open_tiny(), PICTURES, replace(CONFIG, steps=1), keeping=keeping)
    with pytest.raises(TrainError, match=r"flip \(was True, is 'not set'\), seed \(was 0, is 1\)"):
        train(open_tiny(), PICTURES, replace(CONFIG, steps=2, seed=1, flip=False), keeping=keeping)


def test_a_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def interrupt(report: Report) -> None:
        if report.step == 2:
            signal.raise_signal(signal.SIGTERM)

    keeping = Keeping(folder=tmp_path / "run", every=100, resume=True)
    first = train(open_tiny(), PICTURES, CONFIG, watch=Watch(step=interrupt), keeping=keeping)
    assert (first.steps, first.signal) == (2, signal.SIGTERM)
    save(train(open_tiny(), PICTURES, CONFIG, keeping=keeping).delta, tmp_path / "again")
    save(train(open_tiny(), PICTURES, CONFIG).delta, tmp_path / "whole")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


SCRIPT = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from svdiff_delta import save
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training import class_images
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Watch
folder, killed = Path(sys.argv[1]), int(sys.argv[2])
class_images.SAMPLING = replace(class_images.SAMPLING, steps=2)
config = TrainConfig(prompt="a photo of a sks cat", class_prompt="a photo of a cat", class_images=2, steps=20,
                     resolution=32, learning_rate=5e-2, selectors=("unet-ca",), warmup=5, schedule="cosine",
                     accumulate=2)
def step(report):
    if report.step == killed:
        os.kill(os.getpid(), signal.SIGKILL)
keeping = Keeping(folder=folder / "run", every=5, resume=True)
outcome = train(open_tiny(), pictures_path("black_cat"), config, keeping=keeping, watch=Watch(step=step),
                class_folder=folder / "class")
save(outcome.delta, folder / "delta.safetensors")
"""


@pytest.mark.slow
def test_twenty_steps_equal_ten_a_kill_and_ten_more(tmp_path: Path) -> None:
    def run(folder: Path, killed: int) -> int:
        folder.mkdir(exist_ok=True)
        return forked(SCRIPT, folder, str(killed), warn=True).code

    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "killed", 11) == -signal.SIGKILL  # the newest state is of step 10
    assert run(tmp_path / "killed", 0) == 0
    first, second = ((tmp_path / name / "delta.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second
