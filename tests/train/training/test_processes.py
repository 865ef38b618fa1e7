"""Processes of torchrun are one run: what they train, who writes, and how they wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import SVDIFF, Outcome
from support.descent import ROUNDED, greatest_distance
from support.forked import forked, together

from svdiff_delta import load
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training import processes
from svdiff_train.training.checkpoint import load_state, states
from svdiff_train.training.loop import train
from svdiff_train.training.processes import ALONE, Crew, accelerator, unused

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.optim.AdamW = lambda groups, **_: torch.optim.SGD(groups)  # as support.descent does
from svdiff_delta import save
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training import class_images
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.tiny import open_tiny, pictures_path
folder, batch = Path(sys.argv[1]), int(sys.argv[2])
class_images.SAMPLING = replace(class_images.SAMPLING, steps=2)
config = TrainConfig(prompt="a photo of a sks cat", class_prompt="a photo of a cat", class_images=3, steps=3,
                     resolution=32, learning_rate=1.0, batch_size=batch, selectors=("unet-ca",))
outcome = train(open_tiny(), pictures_path("black_cat"), config, keeping=Keeping(folder=folder / "run"),
                class_folder=folder / "class")
import torch.distributed as dist
rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
(folder / f"process-{rank}-of-{count}").touch()
if outcome.main_process:
    save(outcome.delta, folder / "delta.safetensors")
if count > 1:
    dist.destroy_process_group()
"""


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
    subprocess.run([*LAUNCH, str(script), str(tmp_path / "two"), "1"], check=True, env=ENVIRONMENT)
    assert forked(SCRIPT, tmp_path / "one", "2", warn=True).code == 0
    assert {path.name for path in (tmp_path / "two").glob("process-*")} == {"process-0-of-2", "process-1-of-2"}
    two, one = (load(tmp_path / name / "delta.safetensors") for name in ("two", "one"))
    assert max(np.abs(one[name]).max() for name in one) > 1e-3
    assert greatest_distance(two, one) < ROUNDED


def svdiff(*arguments: object) -> Outcome:
    return forked(SVDIFF, *map(str, arguments), warn=True)


@pytest.mark.slow
def test_one_process_repeats_and_prolongs_a_run_of_two(tmp_path: Path) -> None:
    """Accumulation too: each share is added up by itself, so even the last bits are the same."""
    what = ("train", "tiny", pictures_path("black_cat"), "--prompt", "a photo of a sks cat", "--select", "unet-ca-kv")
    how = ("--resolution", 32, "--accumulate", 2, "--learning-rate", 0.05)
    two, again, longer, whole = (tmp_path / f"{name}.safetensors" for name in ("two", "again", "longer", "whole"))
    command = [*LAUNCH, "-m", "svdiff_cli", *map(str, (*what, *how, "--steps", 2, "-o", two))]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert done.stderr.count("2 processes: 4 pictures of the subject in each step") == 1
    assert (load(two).metadata.training or {})["processes"] == 2
    assert svdiff("train", "--config", two.with_suffix(".toml"), "-o", again).code == 0
    assert again.read_bytes() == two.read_bytes()
    goes_on = (*what, *how, "--steps", 4, "--run-folder", two.with_suffix(".run"), "--resume", "-o", longer)
    refused = svdiff(*goes_on)
    assert refused.code == 1
    assert "processes (was 2, is 1)" in refused.err
    assert svdiff(*goes_on, "--processes", 2).code == 0
    ends = together(2, SVDIFF, *map(str, (*what, *how, "--steps", 4, "-o", whole)), warn=True)
    assert [each.code for each in ends] == [0, 0]
    assert longer.read_bytes() == whole.read_bytes()


SLOW = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=4))
from svdiff_delta import save
from svdiff_train.training import class_images as prior, loop, run, validation as validate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.sampling.sample import Sampling
from svdiff_train.tiny import open_tiny, pictures_path
folder, alone = Path(sys.argv[1]), dist.get_rank() == 0
def slow(function):
    def call(*arguments, **settings):
        if alone:
            time.sleep(6)
        return function(*arguments, **settings)
    return call
for module, name in ((prior, "generate"), (validate.Validation, "_write"), (run, "save_state"), (loop, "_trackers")):
    setattr(module, name, slow(getattr(module, name)))
prior.SAMPLING = Sampling(steps=2, guidance=4.0, batch_size=2)
config = TrainConfig(prompt="a photo of a sks cat", class_prompt="a photo of a cat", class_images=5, steps=1,
                     selectors=("unet-ca-kv",))
validation = validate.Validation(prompts=("a cat", "a dog", "a car"), sampling=Sampling(steps=2, batch_size=2))
outcome = loop.train(open_tiny(), pictures_path("black_cat"), config, keeping=run.Keeping(folder=folder / "run"),
                     validation=validation, class_folder=folder / "class")
if outcome.main_process:
    save(outcome.delta, folder / "delta.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_process_that_works_alone_is_waited_for_and_pictures_are_those_of_one(tmp_path: Path) -> None:
    for name, count in (("two", 2), ("one", 1)):
        (tmp_path / name).mkdir()
        for end in together(count, SLOW, tmp_path / name, warn=True):
            assert end.code == 0, end.err
    assert (tmp_path / "two/delta.safetensors").exists()
    painted = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png")}
    assert len(painted) == 8
    for path in sorted(painted):
        if path.parts[0] == "class":  # what validation paints was trained on one picture, or on two
            assert (tmp_path / "two" / path).read_bytes() == (tmp_path / "one" / path).read_bytes()
        assert (tmp_path / "two" / path).exists()
    known = [load_state(states(tmp_path / name / "run/state")[-1]).facts for name in ("two", "one")]
    assert known[0]["pictures of a photo of a cat"] == known[1]["pictures of a photo of a cat"]


def test_processes_that_cannot_share_out_a_run_are_refused() -> None:
    config = TrainConfig(prompt="a cat", processes=2)
    with pytest.raises(InputError, match="one of 2 processes, which 3 cannot share out: set processes to 3"):
        processes.shared(config, Crew(count=3))
    assert processes.shared(config, ALONE) == config
    assert processes.shared(TrainConfig(prompt="a cat"), Crew(count=3)).processes == 3


@pytest.mark.parametrize("name", processes.WORLD)
def test_processes_that_nothing_connects_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_alone = accelerator()  # makes accelerate's state for this process
    assert train_alone.num_processes == 1
    monkeypatch.setenv(name, "2")
    with pytest.raises(TrainError, match="2 processes were started, and each would be a run of its own"):
        train(open_tiny(), pictures_path("black_cat"), TrainConfig(prompt="a cat"))


def test_what_accelerate_was_told_in_vain_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(unused()) == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    assert list(unused()) == ["note: ACCELERATE_MIXED_PRECISION=bf16 is not looked at: set mixed_precision"]
