"""Memory that is not enough, and devices that fail: every part of a run says when it was, and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from support.refusals import EXHAUSTED, FAILED

from svdiff_delta.errors import AttachError, InputError, TrainError
from svdiff_train.sampling.sample import Sampling
from svdiff_train.settings.config import MethodName, TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.checkpoint import states
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.training.oom_advice import device_kept, enough_memory
from svdiff_train.training.step import Stepper
from svdiff_train.training.validation import Validation

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat",
    class_prompt="a photo of a cat",
    class_images=1,
    selectors=("unet-ca-kv",),
    resolution=32,
    steps=1,
    batch_size=2,
)
VALIDATION = Validation(prompts=("a cat",), every=1, sampling=Sampling(steps=1))
PARTS = {
    "training.setup.load_pipeline": "while loading the model: set mixed_precision to bf16, or take a smaller base",
    "training.class_images.generate": "while painting pictures of the class: .*name a class folder",
    "methods.svdiff.attach": "while preparing what is trained: .*set selectors to a part of the model",
    "training.step.Stepper._loss": "at step 1: .*set batch_size below 2 .*gradient_checkpointing.*resolution lower",
    "training.validation.generate": "while painting after step 1: .*paint fewer pictures on the way",
}


def full(*arguments: object, **settings: object) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("part", PARTS)
def test_a_run_out_of_memory_says_when_it_was_and_what_to_set(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"svdiff_train.{part}", full)
    with pytest.raises(TrainError, match=f"out of memory {PARTS[part]}"):
        train(open_tiny(), PICTURES, CONFIG, validation=VALIDATION)


@pytest.mark.parametrize(
    ("part", "kept"), [("training.validation.generate", ["step-000001"]), ("training.step.Stepper._loss", [])]
)
def test_steps_are_kept_where_only_painting_failed(
    part: str, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"svdiff_train.{part}", full)
    keeping, longer = Keeping(folder=tmp_path), replace(CONFIG, class_prompt=None, steps=2)
    with pytest.raises(TrainError, match="out of memory"):
        train(open_tiny(), PICTURES, longer, validation=VALIDATION, keeping=keeping)
    assert [path.stem for path in states(keeping.states)] == kept


def test_what_is_at_its_smallest_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdiff_train.training.step.Stepper._loss", full)
    small = replace(CONFIG, batch_size=1, gradient_checkpointing=True, mixed_precision="bf16", class_prompt=None)
    with pytest.raises(TrainError, match="at step 1: set resolution lower, or set selectors"):
        train(open_tiny(), PICTURES, small)


@pytest.mark.parametrize(
    ("method", "halved"), [("svdiff", "set mixed_precision to bf16, or "), ("full", ""), ("kv", "")]
)
def test_a_model_that_stays_in_float32_is_not_said_to_shrink(
    method: MethodName, halved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svdiff_train.training.setup.load_pipeline", full)
    with pytest.raises(TrainError, match=f"while loading the model: {halved}take a smaller base$"):
        train(open_tiny(), PICTURES, replace(CONFIG, method=method))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
    ids=["python", "torch"],
)
def test_the_memory_of_the_machine_counts_too(error: Exception) -> None:
    with pytest.raises(TrainError, match="out of memory here: buy some") as raised, enough_memory("here", "buy some"):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), enough_memory("here", "buy some"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("who", EXHAUSTED)
def test_every_librarys_words_count(who: str) -> None:
    with pytest.raises(TrainError, match="out of memory here: buy some"), enough_memory("here", "buy some"):
        raise EXHAUSTED[who]()


def test_what_the_library_said_of_the_memory_is_said_for_the_run() -> None:
    def attaching() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise AttachError("out of memory while attaching") from error

    with pytest.raises(TrainError, match="out of memory here: buy some"), enough_memory("here", "buy some"):
        attaching()


@pytest.mark.parametrize("how", FAILED)
def test_a_run_whose_device_fails_names_the_last_state(how: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError) as raised, device_kept(lambda: tmp_path / "step-000007.safetensors"):
        raise FAILED[how]()
    assert raised.value.message.startswith("the device has failed or is gone (")
    assert raised.value.message.endswith(f"; the last state is kept in {tmp_path / 'step-000007.safetensors'}")
    assert raised.value.fix == "go on from it, in a new process, with `resume=True`"
    with pytest.raises(TrainError, match=r"is gone \(.*\): start again"), device_kept(lambda: None):
        raise FAILED[how]()


def test_a_run_whose_device_fails_goes_on_from_its_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third step on, all that reads from the device fails: the step, the report, taking δ off."""
    longer = replace(CONFIG, class_prompt=None, steps=3, learning_rate=1e-2)
    whole = train(open_tiny(), PICTURES, longer).delta
    keeping, loss = Keeping(folder=tmp_path, every=1), Stepper._loss

    def gone(*arguments: object, **options: object) -> NoReturn:
        raise FAILED["gone"]()

    def failing(self: Stepper, *arguments: object, **options: object) -> object:
        if len(states(keeping.states)) < 2:
            return loss(self, *arguments, **options)  # type: ignore[arg-type]
        patch.setattr("svdiff_delta.runtime.handle.Handle.detach", gone)
        patch.setattr("svdiff_train.training.reports.Reports.fault", gone)
        gone()

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "_loss", failing)
        with pytest.raises(TrainError, match=r"no longer available\); the last state is kept in .*step-000002"):
            train(open_tiny(), PICTURES, longer, keeping=keeping)
    assert [path.stem for path in states(keeping.states)] == ["step-000001", "step-000002"]
    again = train(open_tiny(), PICTURES, longer, keeping=replace(keeping, resume=True)).delta
    assert {name: again[name].tolist() for name in again} == {name: whole[name].tolist() for name in whole}


def test_a_run_is_on_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(CONFIG, class_prompt=None)
    assert train(open_tiny(), PICTURES, one, device="cpu").steps == 1
    with pytest.raises(InputError, match=r"^cuda:99: there is no such device here \(.*; torch .* sees "):
        train(open_tiny(), PICTURES, one, device="cuda:99")
    taken: list[torch.device] = []
    monkeypatch.setattr("svdiff_train.training.processes.find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with pytest.raises(TrainError, match=r"^cuda:1: accelerate runs on cpu in this process: use `device=.cpu.`$"):
        train(open_tiny(), PICTURES, one, device="cuda:1")
    assert taken == [torch.device("cuda:1")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^cuda:1: each of 2 processes has a GPU of its own: use `device=.cuda.`$"):
        train(open_tiny(), PICTURES, one, device="cuda:1")
