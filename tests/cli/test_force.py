"""What `--force` replaces, command by command; and outputs that lie in, hold or are what a command reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.commands import Outcome, svdiff
from support.deltas import random_delta, saved
from support.files import contents, tree, written
from support.models import base_delta

from svdiff_delta import save
from svdiff_delta._util.atomic import MARKER, replace_folder
from svdiff_train.tiny import base_path, open_tiny, pictures_path

PROMPT = "a photo of a sks thing"
RUN = ["--prompt", PROMPT, "--steps", "1", "--dry-run"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base as a folder, a delta for it, and pictures."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(base_path(), folder / "base")
    shutil.copytree(next(pictures_path("x").parent.iterdir()), folder / "pictures")
    save(base_delta(open_tiny(), "mid"), folder / "a.safetensors")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all that, and a folder of the user's own notes."""
    shutil.copytree(models, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    Path("notes").mkdir()
    Path("notes", "mine.txt").write_text("keep")
    return Path.cwd()


def refused(*arguments: str | Path) -> str:
    """The line of a command that fails and changes nothing."""
    before = contents(Path())
    done = svdiff(*arguments)
    assert (done.code, done.out, contents(Path())) == (1, "", before), done.err
    return done.err.splitlines()[-1]


WRITE_FOLDERS = {
    "bake": ["bake", "base", "a.safetensors", "-o"],
    "convert": ["convert", "a.safetensors", "--to", "peft", "--base", "tiny", "--rank", "2", "--allow-unmatched", "-o"],
    "generate": ["generate", "tiny", "--prompt", "a dog", "--steps", "1", "-o", "sheet.png", "--separate"],
    "demo": ["demo", "--steps", "1", "-o"],
    "train": ["train", "tiny", "pictures", *RUN, "--method", "lora", "-o"],
}


@pytest.mark.parametrize("command", WRITE_FOLDERS.values(), ids=WRITE_FOLDERS)
def test_force_removes_no_folder_that_this_program_did_not_write(folder: Path, command: list[str]) -> None:
    line = refused(*command, "notes", "--force")
    assert f"notes: is no folder that this program wrote (it has no {MARKER}" in line


@pytest.mark.parametrize("command", [WRITE_FOLDERS["bake"], WRITE_FOLDERS["convert"]], ids=["bake", "convert"])
def test_force_replaces_what_a_command_wrote_and_nothing_that_was_added(folder: Path, command: list[str]) -> None:
    assert svdiff(*command, "out", "--force").code == 0
    before = written(Path("out"))
    assert svdiff(*command, "out", "--force").code == 0
    assert written(Path("out")) == before
    Path("out", "mine.txt").write_text("keep")
    assert "out: holds what this program did not write there: mine.txt: move that elsewhere" in refused(
        *command, "out", "--force"
    )


OUTPUTS = {
    "bake onto its base": ["bake", "base", "a.safetensors", "-o", "base"],
    "bake into its base": ["bake", "base", "a.safetensors", "-o", "base/out"],
    "bake onto a file that is its base": [
        *("bake", "base/unet/diffusion_pytorch_model.safetensors", "a.safetensors"),
        *("-o", "base/unet/diffusion_pytorch_model.safetensors"),
    ],
    "bake around its delta": ["bake", "tiny", "own/a.safetensors", "-o", "own"],
    "convert into its base": [
        "convert",
        "a.safetensors",
        "--to",
        "kohya",
        "--rank",
        "2",
        "--base",
        "base",
        "-o",
        "base/x",
    ],
    "convert around its input": [
        *("convert", "own/a.safetensors", "--to", "peft", "--rank", "2", "--base", "tiny", "-o", "own"),
    ],
    "rebase into its base": ["rebase", "a.safetensors", "--base", "base", "--to", "tiny", "-o", "base/x.safetensors"],
    "train into its pictures": ["train", "tiny", "pictures", *RUN, "-o", "pictures/x.safetensors"],
    "train with class pictures among its pictures": [
        *("train", "tiny", "pictures", *RUN, "--class-folder", "pictures/class", "-o", "x.safetensors"),
    ],
    "train with a run in its base": ["train", "base", "pictures", *RUN, "--run-folder", "base/run", "-o", "x"],
    "a concept of which the output would lie in the pictures": [
        *("train", "tiny", "--concept", "pictures", PROMPT, "", "--steps", "1", "--dry-run", "-o", "pictures/x"),
    ],
    "generate into its base": ["generate", "base", "--prompt", "a dog", "-o", "base/x.png"],
    "separate pictures around the delta": [
        *("generate", "tiny", "own/a.safetensors", "--prompt", "a dog", "-o", "x.png", "--separate", "own"),
    ],
    "edit onto its picture": ["edit", "tiny", "a.safetensors", "a.png", "--prompt", "a dog", "-o", "a.png"],
    "morph into its base": ["morph", "base", "a.safetensors", "a.safetensors", "--prompt", "a dog", "-o", "base/x.png"],
    "evaluate into its pictures": [
        "evaluate",
        "tiny",
        "--images",
        "pictures",
        "--prompt",
        "a",
        "-o",
        "pictures/x.json",
    ],
    "an evaluation's plot among its pictures": [
        *("evaluate", "tiny", "--images", "pictures", "--prompt", "a", "-o", "x.json", "--plot", "pictures/x.png"),
    ],
    "plot onto its delta": ["plot", "a.png", "-o", "a.png"],
    "correlate onto a delta": ["correlate", "b", "b", "--plot", "b"],
}


@pytest.mark.parametrize("arguments", OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_never_is_in_around_or_the_same_as_what_the_command_reads(folder: Path, arguments: list[str]) -> None:
    with replace_folder(Path("own"), overwrite=False) as own:  # which --force could replace
        shutil.copyfile("a.safetensors", own / "a.safetensors")
    shutil.copyfile(next(Path("pictures").iterdir()), "a.png")
    saved(random_delta(1), Path("b"))
    (folder / "base" / MARKER).write_text(json.dumps({"files": [*tree(folder / "base"), MARKER]}))
    line = refused(*arguments, "--force")
    assert "what it would be made of" in line


def test_a_result_in_whose_place_the_run_lies_is_refused(folder: Path) -> None:
    line = refused("train", "tiny", "pictures", *RUN, "--method", "lora", "-o", "out", "--run-folder", "out/run")
    assert line == "error: out/run: would lie in out, which is written in the end: choose another folder"


@pytest.mark.parametrize("place", ["d.safetensors", "d.safetensors/run", "d.toml", "d.toml/run"])
def test_a_run_in_the_place_of_a_delta_or_its_run_file_is_refused_before_it_starts(folder: Path, place: str) -> None:
    line = refused("train", "tiny", "pictures", *RUN, "-o", "d.safetensors", "--run-folder", place)
    written = place.partition("/")[0]
    assert line == f"error: {place}: would lie in {written}, which is written in the end: choose another folder"
    assert not Path(written).exists()


def test_separate_pictures_are_refused_where_the_sheet_lies(folder: Path) -> None:
    Path("own").mkdir()
    line = refused("generate", "tiny", "--prompt", "a", "-o", "own/x.png", "--separate", "own", "--force")
    assert line == "error: own: is, holds or lies in own/x.png: choose places beside each other"


def test_a_result_may_lie_in_its_run_and_pictures_of_the_class_may_too(folder: Path) -> None:
    Path("run").mkdir()
    done: Outcome = svdiff("train", "tiny", "pictures", *RUN, "-o", "run/x.safetensors", "--run-folder", "run")
    assert (done.code, done.err) == (0, "")


def test_a_device_is_no_output_and_stays_one(folder: Path) -> None:
    assert "is a device, pipe or socket: name a file or folder to write" in refused(
        "scale", "a.safetensors", "--factor", "2", "--force", "-o", os.devnull
    )
    assert Path(os.devnull).is_char_device()
