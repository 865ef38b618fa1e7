"""`--device`: what commands take where it is not given, what they refuse, and their lines where a device refuses."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click
import pytest
import torch
from support.commands import Outcome, svdiff
from support.models import base_delta
from support.refusals import EXHAUSTED, FAILED

from svdiff_cli.devices import DEFAULTS, MEMORY, device_for
from svdiff_cli.main import COMMANDS, main
from svdiff_delta import save
from svdiff_delta.baking import bake as baking
from svdiff_delta.base_model import devices
from svdiff_delta.svd import cache as caches
from svdiff_delta.svd import gpu_basis
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.step import Stepper

CATS = pictures_path("black_cat")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a delta of the embedded base."""
    monkeypatch.chdir(tmp_path)
    save(base_delta(open_tiny(), "mid-ca"), tmp_path / "d.safetensors")
    return tmp_path


ARGUMENTS: dict[str, tuple[object, ...]] = {
    "train": (
        "train",
        "tiny",
        CATS,
        "--prompt",
        "a cat",
        "--select",
        "mid-ca",
        "--steps",
        1,
        "-o",
        "out.safetensors",
    ),
    "generate": ("generate", "tiny", "d.safetensors", "--prompt", "a cat", "--steps", 1, "-o", "out.png"),
    "edit": ("edit", "tiny", "d.safetensors", CATS / "00.png", "--prompt", "a cat", "--steps", 2, "-o", "out.png"),
    "morph": ("morph", "tiny", "d.safetensors", "d.safetensors", "--prompt", "a cat", "--steps", 1, "-o", "out.png"),
    "evaluate": ("evaluate", "tiny", "--images", CATS, "--prompt", "a cat", "--steps", 1, "-o", "out.json"),
    "serve": ("serve", "tiny", "--deltas", ".", "--port", 0),
    "basis build": ("basis", "build", "tiny", "mid-ca"),
    "bake": ("bake", "tiny", "d.safetensors", "-o", "out"),
    "convert": ("convert", "d.safetensors", "--to", "full", "--base", "tiny", "--calibrate", CATS, "-o", "out"),
}
"""A call of each command that takes --device."""


def run(command: str, *more: object) -> Outcome:
    return svdiff(*map(str, (*ARGUMENTS[command], *more)))


def test_every_command_with_the_option_has_a_default_that_its_help_gives_the_reason_of() -> None:
    found: dict[str, str] = {}
    for name in sum(COMMANDS.values(), ()):
        command = main.get_command(click.Context(main), name)
        group = command.commands if isinstance(command, click.Group) else {"": command}
        for part, each in group.items():
            for option in each.params if each is not None else ():
                if "--device" in option.opts and isinstance(option, click.Option):
                    found[f"{name} {part}".strip()] = option.help or ""
    assert found.keys() == DEFAULTS.keys()
    assert all(DEFAULTS[name].said in text for name, text in found.items())
    assert {name.partition(" ")[0] for name in DEFAULTS} - {"convert"} == MEMORY.keys()


def test_a_gpu_is_the_default_for_what_it_is_good_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {device_for(name, None) for name in DEFAULTS} == {CPU}  # where there is none
    monkeypatch.setattr(devices, "best_device", lambda float64=False: torch.device("mps") if float64 else CUDA)
    assert {name: device_for(name, None).type for name in DEFAULTS} == {
        **dict.fromkeys(("train", "generate", "edit", "morph", "evaluate", "serve", "board"), "cuda"),
        "basis build": "mps",
        **dict.fromkeys(("bake", "convert"), "cpu"),
    }
    assert {device_for(name, "cpu") for name in DEFAULTS} == {CPU}


ABSENT = ["cuda:99"] if torch.cuda.is_available() else ["cuda:99", "cuda"]


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_device_that_is_not_there_is_refused_with_what_torch_sees(command: str, name: str, folder: Path) -> None:
    done = run(command, "--device", name)
    assert done.code == 1
    assert done.err.startswith(f"error: {name}: there is no such device here (")
    assert f"; torch {torch.__version__} is built for " in done.err
    assert done.err.endswith(": use --device cpu\n")
    assert [path.name for path in folder.iterdir()] == ["d.safetensors"]


def test_a_dry_run_looks_at_the_device_too() -> None:
    assert run("train", "--dry-run", "--device", "cuda:99").err.startswith("error: cuda:99: there is no such device")


PHASES = {
    "generate, loading": (
        "generate",
        "diffusers.DiffusionPipeline.from_pretrained",
        "lower --batch-size or --size, or ",
    ),
    "generate, attaching": (
        "generate",
        "svdiff_train.sampling.adapter_stack.attach",
        "lower --batch-size or --size, or ",
    ),
    "generate, painting": ("generate", "svdiff_train.sampling.gallery.generate", "lower --batch-size or --size, or "),
    "edit, loading": ("edit", "svdiff_train.sampling.pipelines.load_pipeline", "lower --batch-size or --size, or "),
    "edit, inverting": ("edit", "svdiff_train.sampling.edit.ddim_invert", "lower --batch-size or --size, or "),
    "edit, painting": ("edit", "svdiff_train.sampling.edit.generate", "lower --batch-size or --size, or "),
    "morph, loading": ("morph", "svdiff_train.sampling.pipelines.load_pipeline", "lower --size, or use --device cpu"),
    "morph, painting": ("morph", "svdiff_train.sampling.morph.generate", "lower --size, or use --device cpu"),
    "evaluate, loading CLIP": ("evaluate", "transformers.CLIPModel.from_pretrained", "use --device cpu, or paint with"),
    "evaluate, painting": ("evaluate", "svdiff_train.evaluate.candidates.generate", "use --device cpu, or paint with"),
    "evaluate, measuring": ("evaluate", "svdiff_train.evaluate.score", "use --device cpu, or paint with"),
    "bake": ("bake", "svdiff_delta.baking.bake.shifted_parts", "use --device cpu, or set OMP_NUM_THREADS=1"),
    "train, loading": ("train", "svdiff_train.training.setup.load_pipeline", "set mixed_precision to bf16, or take"),
    "train, attaching": ("train", "svdiff_train.methods.svdiff.attach", "set mixed_precision to bf16, or set"),
    "train, a step": ("train", "svdiff_train.training.step.Stepper._loss", "set mixed_precision to bf16, or set"),
    "train, writing": (
        "train",
        "svdiff_train.training.run.Run._result",
        "select a part of the model, or lower --res",
    ),
}
"""The command of each part of the work, where it is done, and the beginning of what to set."""


WHO = ("torch", "cuBLAS", "cuDNN", "driver")
TOGETHER = [
    pytest.param(phase, who, marks=() if row % len(WHO) == column else pytest.mark.slow)
    for row, phase in enumerate(PHASES)
    for column, who in enumerate(WHO)
]
"""Every part of the work with one of them, and each of them with some part; the others are slow."""


@pytest.mark.parametrize(("phase", "who"), TOGETHER)
def test_a_command_without_enough_memory_says_what_to_set(
    phase: str, who: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, place, advice = PHASES[phase]

    def full(*_: object, **__: object) -> NoReturn:
        raise EXHAUSTED[who]()

    monkeypatch.setattr(place, full)
    done = run(command, "--quiet")
    assert done.code == 1
    assert done.err.startswith("error: out of memory")
    assert f": {advice}" in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(folder.glob("out*.[spj]*"))


@pytest.mark.parametrize("command", ["generate", "bake"])
def test_a_device_that_fails_is_one_line_too(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: object, **__: object) -> NoReturn:
        raise FAILED["launch"]()

    monkeypatch.setattr(PHASES["generate, painting" if command == "generate" else command][1], failed)
    assert run(command, "--quiet").err == (
        "error: the device has failed or is gone (CUDA error: unspecified launch failure): start again, in a new "
        "process, or on another one: --device cpu\n"
    )


def test_a_card_that_is_gone_ends_a_run_with_its_last_state_and_resume_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, steps = Stepper._loss, 0

    def failing(self: Stepper, *given: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise FAILED["gone"]()
        return own(self, *given)  # type: ignore[arg-type]

    longer = ("--steps", 4, "--save-every", 1, "--quiet", "--force")
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "_loss", failing)
        done = run("train", *longer)
    assert done.code == 1
    state = Path("out.run", "state", "step-000002.safetensors")
    assert done.err == (
        "error: the device has failed or is gone (CUDA error: the device is no longer available); the last state is "
        f"kept in {state}: go on from it, in a new process, with --resume\n"
    )
    assert not Path("out.safetensors").exists()
    assert run("train", "--steps", 4, "--quiet", "--resume").code == 0
    assert run("train", *longer, "-o", "whole.safetensors").code == 0
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_bake_multiplies_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read and written is on the CPU; a device of the same name computes the same bytes."""
    assert run("bake").code == 0
    seen: list[torch.device] = []
    baked = baking._Writer.baked

    def noting(self: baking._Writer, *arguments: object) -> torch.Tensor:
        seen.append(self.verified.device)
        return baked(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(baking._Writer, "baked", noting)
    done = svdiff("bake", "tiny", "d.safetensors", "--device", "cpu:0", "-o", "again")
    assert done.code == 0, done.err
    assert set(seen) == {torch.device("cpu:0")}
    first, again = (Path(name, "unet", "diffusion_pytorch_model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == again


@pytest.mark.parametrize("command", ["train", "generate", "edit", "morph", "evaluate", "bake", "basis build"])
def test_bases_that_are_missing_are_computed_on_the_card_where_the_command_runs(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that computes in the processor's memory stands in for one."""
    card, seen = torch.device("meta"), list[torch.device]()

    def upload(rounded: torch.Tensor, device: torch.device) -> torch.Tensor:
        seen.append(device)
        return rounded

    monkeypatch.setenv("SVDIFF_HOME", str(Path("bases").absolute()))
    monkeypatch.setattr(gpu_basis, "upload", upload)
    monkeypatch.setattr(caches, "find_device", lambda name, **_: torch.device(name))
    monkeypatch.setattr(caches, "bases_beside", lambda device: card)
    if command == "basis build":
        monkeypatch.setattr(devices, "best_device", lambda **_: card)
    done = run(command, *["d.safetensors"] * (command == "evaluate"), "--quiet")
    assert done.code == 0, done.err
    assert set(seen) == {card}
