"""Commands that open a base: what they write, what they print, and what they refuse with one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from support.models import base_delta

from svdiff_cli.main import main
from svdiff_delta import load, save
from svdiff_train.tiny import base_path, open_tiny, pictures_path

PROMPT = "a photo of a sks cat"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    path = tmp_path / "delta.safetensors"
    save(base_delta(open_tiny(), "mid"), path)
    return path


def refused(result: Result, *words: str) -> None:
    """The command failed with exit code 1 or 2 and one line that holds these words."""
    assert result.exit_code in (1, 2), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.lower().startswith("error: ")
    for word in words:
        assert word in line


def test_bake_writes_a_pipeline_that_diffusers_loads(delta: Path, tmp_path: Path) -> None:
    result = run("bake", "tiny", delta, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"wrote {tmp_path / 'out'}\nrounding lost ")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"


def test_bake_takes_weights_and_a_dtype(delta: Path, tmp_path: Path) -> None:
    result = run("bake", "tiny", f"{delta}:0.5", "--dtype", "f32", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}


def test_bake_takes_one_component_s_file(delta: Path, tmp_path: Path) -> None:
    file = base_path() / "unet" / "diffusion_pytorch_model.safetensors"
    result = run("bake", file, delta, "-o", tmp_path / "out.safetensors")
    assert result.exit_code == 0, result.output
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(file).keys()


def test_bake_refuses_another_base_and_writes_nothing(delta: Path, tmp_path: Path) -> None:
    shutil.copytree(base_path(), tmp_path / "other")
    file = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({key: weight * 2 for key, weight in weights.items()}, file)
    refused(run("bake", tmp_path / "other", delta, "-o", tmp_path / "out"), "unet.mid_block", "another base")
    assert not (tmp_path / "out").exists()


def test_bake_refuses_a_pickle_with_the_call_that_converts_it(delta: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    refused(run("bake", tmp_path / "model.ckpt", delta, "-o", tmp_path / "out"), "pickle", "from_single_file")


def test_bake_refuses_the_original_layout_with_the_call_that_converts_it(delta: Path, tmp_path: Path) -> None:
    weights = load_file(base_path() / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({f"model.diffusion_model.{key}": weight for key, weight in weights.items()}, tmp_path / "sd.safetensors")
    refused(run("bake", tmp_path / "sd.safetensors", delta, "-o", tmp_path / "out"), "from_single_file")


def test_bake_refuses_an_existing_output(delta: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(run("bake", "tiny", delta, "-o", tmp_path / "out"), "exists already", "--force")


def test_bake_removes_its_partial_output_when_the_disk_refuses(delta: Path, tmp_path: Path) -> None:
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        "from svdiff_cli.main import main; main()"
    )
    command = [sys.executable, "-c", script, "bake", "tiny", str(delta), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "could not be written (File too large)" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"delta.safetensors"}


def test_basis_build_fills_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDIFF_HOME", str(tmp_path))
    result = run("basis", "build", "tiny", "mid-ca", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    entries = list(tmp_path.rglob("*.safetensors"))
    assert (facts["bases"], facts["bytes"]) == (4, sum(path.stat().st_size for path in entries))


def test_basis_build_refuses_an_unknown_subset_and_lists_the_known() -> None:
    refused(run("basis", "build", "tiny", "unet-3d"), "unet-3d", "unet-ca-kv")


def test_verify_with_a_base_says_that_it_fits(delta: Path) -> None:
    result = run("verify", delta, "--base", "tiny")
    assert result.exit_code == 0, result.output
    assert "fits tiny" in result.stdout


def test_verify_refuses_a_base_that_is_not_the_delta_s(delta: Path, tmp_path: Path) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "unet")
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({key: -weight for key, weight in weights.items()}, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    refused(run("verify", delta, "--base", tmp_path / "unet"), "another base")


def train(output: Path, *more: object) -> Result:
    return run("train", "tiny", pictures_path("black_cat"), "--prompt", PROMPT, "-o", output, *more)


def test_train_writes_a_delta_with_its_facts_and_title(tmp_path: Path) -> None:
    output = tmp_path / "cat.safetensors"
    result = train(output, "--steps", 2, "--select", "unet-ca", "--title", "A cat")
    assert result.exit_code == 0, result.output
    delta = load(output)
    assert delta.metadata.title == "A cat"
    assert (delta.metadata.training or {})["steps"] == 2
    assert result.stdout.startswith(f"wrote {output}: 2 steps, ")


def test_train_refuses_an_existing_output_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    begun = time.monotonic()
    refused(train(tmp_path / "a.safetensors"), "exists already")
    assert time.monotonic() - begun < 10  # a training takes longer on any machine


def test_train_refuses_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("train", "tiny", tmp_path / "empty", "--prompt", PROMPT, "-o", tmp_path / "a.safetensors")
    refused(result, "holds no pictures")


def test_train_refuses_a_selector_that_matches_nothing(tmp_path: Path) -> None:
    refused(train(tmp_path / "a.safetensors", "--select", "unet.nothing*"), "matches none")
    assert not list(tmp_path.iterdir())


def interrupted_training(where: str, output: Path) -> subprocess.CompletedProcess[str]:
    """Train in a process that gets a SIGINT when it comes to `where`, a line of Python in the training loop."""
    # A program that was started in the background may have been told to ignore SIGINT.
    begin = "import os, signal\nfrom svdiff_train.training import setup as opening, step as step_module"
    listen = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{begin}\n{listen}\n{where}\nfrom svdiff_cli.main import main; main()"
    command = [sys.executable, "-c", script, "train", "tiny", str(pictures_path("black_cat")), "--prompt", PROMPT]
    command += ["--select", "mid-ca", "--steps", "500", "-o", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_ctrl_c_while_training_saves_what_is_there_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "cat.safetensors"
    where = (
        "step = step_module.Stepper.step\n"
        "def interrupted(self, number):\n"
        "    if number == 2: signal.raise_signal(signal.SIGINT)\n"
        "    return step(self, number)\n"
        "step_module.Stepper.step = interrupted"
    )
    done = interrupted_training(where, output)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == (
        f"interrupted: saved the state after 3 steps to {output}; the same command with --resume goes on"
    )
    assert (load(output).metadata.training or {})["steps"] == 3


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_writes_nothing(tmp_path: Path) -> None:
    where = "opening.open_pictures = lambda *given, **more: signal.raise_signal(signal.SIGINT)"
    done = interrupted_training(where, tmp_path / "a.safetensors")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.iterdir())


def test_generate_writes_one_picture(delta: Path, tmp_path: Path) -> None:
    result = run("generate", "tiny", delta, "--prompt", PROMPT, "--steps", 2, "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (64, 64)


def test_generate_writes_a_labelled_sheet_of_several(tmp_path: Path) -> None:
    arguments = ["--prompt", PROMPT, "--prompt", "a house", "--seed", 0, "--seed", 1, "--steps", 1]
    result = run("generate", "tiny", *arguments, "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {tmp_path / 'a.png'}: 4 pictures\n"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 2 * 64


def test_generate_refuses_a_base_that_is_no_pipeline(tmp_path: Path) -> None:
    result = run("generate", base_path() / "unet", "--prompt", PROMPT, "-o", tmp_path / "a.png")
    refused(result, "not a whole pipeline")


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "torch", ["bake", "tiny", "{delta}", "-o", "{out}"]),
        ("torch", "torch", ["basis", "build", "tiny"]),
        ("torch", "torch", ["verify", "{delta}", "--base", "tiny"]),
        ("torch", "torch", ["convert", "{delta}", "--to", "full", "--base", "tiny", "-o", "{out}"]),
        ("torch", "torch", ["rebase", "{delta}", "--base", "tiny", "--to", "tiny", "-o", "{out}"]),
        ("diffusers", "train", ["train", "tiny", "pictures", "--prompt", "x", "-o", "{out}"]),
        ("diffusers", "train", ["generate", "tiny", "--prompt", "x", "-o", "{out}"]),
        ("diffusers", "train", ["demo", "-o", "{out}"]),
    ],
)
def test_a_command_without_its_extra_says_which_to_install(
    package: str, extra: str, arguments: list[str], delta: Path, tmp_path: Path
) -> None:
    filled = [word.format(delta=delta, out=tmp_path / "out") for word in arguments]
    script = f"import sys; sys.modules[{package!r}] = None; from svdiff_cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *filled], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"error: this needs {package}, which is not installed: pip install 'svdiff-delta[{extra}]'\n"


def test_bake_says_what_it_would_do_and_writes_nothing(delta: Path, tmp_path: Path) -> None:
    result = run("bake", "tiny", delta, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    first, second, *rest = result.stdout.splitlines()
    assert first.startswith(f"would write {tmp_path / 'out'}: ")
    assert second == "  with new weights: unet/diffusion_pytorch_model.safetensors"
    assert [line[:16].strip() for line in rest] == [
        "shifted weights",
        "disk needed",
        "memory, about",
        "bases to compute",
    ]
    facts = json.loads(run("bake", "tiny", delta, "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert facts["written"] is False
    assert facts["rewritten"] == ["unet/diffusion_pytorch_model.safetensors"]
    assert not (tmp_path / "out").exists()


def test_a_dry_bake_refuses_another_base(delta: Path, tmp_path: Path) -> None:
    weights = load_file(base_path() / "unet" / "diffusion_pytorch_model.safetensors")
    shutil.copytree(base_path(), tmp_path / "base")
    changed = {key: weight * 1.5 for key, weight in weights.items()}
    save_file(changed, tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    refused(run("bake", tmp_path / "base", delta, "-o", tmp_path / "out", "--dry-run"), "another base")


def test_bake_says_how_much_rounding_lost(delta: Path, tmp_path: Path) -> None:
    result = run("bake", "tiny", f"{delta}:0.01", "-o", tmp_path / "out", "--dtype", "BF16")
    assert result.exit_code == 0, result.output
    assert re.search(r"^rounding lost \d+\.\d% of the change; most in unet\.mid_block\.", result.stdout, re.M)
    assert result.stderr.startswith("warning: ")
    assert "lost more than a third of their change in rounding: use --dtype F32" in result.stderr
    facts = json.loads(run("bake", "tiny", delta, "-o", tmp_path / "wide", "--dtype", "F32", "--json").stdout)
    assert (facts["lost"], facts["losses"]) == (0.0, {})
