"""`svdiff train`: settings, run files, dry runs, resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from support.commands import Outcome, svdiff

from svdiff_cli.train_settings import SETTINGS
from svdiff_delta import load
from svdiff_train.settings.base_advice import advice_of
from svdiff_train.settings.config import RATE_1D, RATES, TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

PICTURES = pictures_path("black_cat")
FEW = ("--select", "unet-ca-kv", "--quiet")
PROMPT = ("--prompt", "a photo of a sks cat")


def run(*arguments: object) -> Outcome:
    return svdiff(*map(str, arguments))


def refused(done: Outcome, why: str) -> None:
    assert done.code == 1
    assert why in done.err


def test_every_setting_of_a_run_is_an_option() -> None:
    assert {setting.name for setting in SETTINGS} == {field.name for field in fields(TrainConfig)}


def test_help_names_the_defaults_that_hold() -> None:
    said = {setting.name: setting.default for setting in SETTINGS if setting.kind is not bool}
    held = {field.name: field.default for field in fields(TrainConfig) if field.default not in (MISSING, None)}
    assert {name: said[name] for name in held.keys() & said.keys()} == {
        name: str(default) for name, default in held.items() if name in said
    }
    assert said["learning_rate"].split("; ")[0] == str(RATES["svdiff"])
    assert said["learning_rate_1d"].split("; ")[0] == str(RATE_1D)
    advice = advice_of(open_tiny())
    for name in ("learning_rate", "learning_rate_1d"):
        assert f"; on tiny {getattr(advice, name):g}" in said[name]
    assert all(f"of {name} {RATES[name]}" in said["learning_rate"] for name in ("full", "lora", "kv"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of two steps, with its run file and state beside it."""
    output = tmp_path_factory.mktemp("trained") / "cat.safetensors"
    done = run("train", "tiny", PICTURES, *PROMPT, *FEW, "--steps", 2, "--save-every", 1, "-o", output)
    assert done.code == 0, done.err
    return output


def test_the_run_file_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    assert run("train", "--config", trained.with_suffix(".toml"), "-o", again, "-q").code == 0
    assert again.read_bytes() == trained.read_bytes()


def test_options_win_over_the_run_file(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    assert run("train", "--config", trained.with_suffix(".toml"), "--seed", 3, "-o", other, "-q").code == 0
    assert (load(other).metadata.training or {})["seed"] == 3


def test_resume_goes_on_from_the_newest_state(trained: Path, tmp_path: Path) -> None:
    longer = ("train", "tiny", PICTURES, *PROMPT, *FEW, "--steps", 3)
    folder = trained.with_suffix(".run")
    assert sorted(path.name for path in (folder / "state").iterdir()) == [
        "step-000001.safetensors",
        "step-000002.safetensors",
    ]
    done = run(*longer, "--run-folder", folder, "--resume", "-o", tmp_path / "resumed.safetensors")
    assert done.code == 0, done.err
    assert run(*longer, "-o", tmp_path / "whole.safetensors").code == 0
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_run_folder_with_states_is_not_taken_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "state" / "step-000001.safetensors").touch()
    done = run("train", "tiny", PICTURES, *PROMPT, "--run-folder", tmp_path / "run", "-o", tmp_path / "a.safetensors")
    refused(done, "holds states of a run: go on from them with --resume, or start anew with --force")


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    done = run("train", "tiny", PICTURES, *PROMPT, "--select", "unet-ca-kv", "--dry-run", "--json", "-o", output)
    found = json.loads(done.out)
    assert (found["images"], found["resolution"], found["steps"]) == (5, 64, 500)
    parts = ("model", "factors", "trained", "activations", "program")
    assert found["memory"]["total"] == sum(found["memory"][name] for name in parts)
    assert not [*tmp_path.iterdir()]


def test_json_says_where_what_is(tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    done = run("train", "tiny", PICTURES, *PROMPT, "--select", "unet-ca-kv", "--steps", 1, "--json", "-o", output)
    found = json.loads(done.out)
    assert (found["output"], found["steps"], found["bytes"]) == (str(output), 1, output.stat().st_size)
    assert found["loss"] > 0
    assert found["interrupted"] is False


@pytest.mark.parametrize(
    ("more", "missing"), [((), "Missing argument BASE"), (("tiny",), "IMAGES"), (("tiny", "x"), "option --prompt")]
)
def test_what_no_file_and_no_option_says_is_missing(tmp_path: Path, more: tuple[str, ...], missing: str) -> None:
    done = run("train", *more, "-o", tmp_path / "a.safetensors")
    assert done.code == 2
    assert missing in done.err


def test_a_prompt_without_the_token_is_refused(tmp_path: Path) -> None:
    done = run("train", "tiny", PICTURES, *PROMPT, "--token", "zwx", "-o", tmp_path / "a.safetensors")
    refused(done, "does not have the token 'zwx': put it into the prompt")


def test_pictures_that_cannot_be_read_are_named_and_left_out_on_request(tmp_path: Path) -> None:
    folder, output = tmp_path / "pictures", tmp_path / "a.safetensors"
    shutil.copytree(PICTURES, folder)
    (folder / "05.png").write_bytes(b"no picture")
    command = ("train", "tiny", folder, *PROMPT, "--select", "unet-ca-kv", "--steps", 1, "-o", output)
    done = run(*command)
    refused(done, "05.png: could not be read as a picture")
    assert "go on without (--skip-bad)" in done.err
    assert not output.exists()
    done = run(*command, "--skip-bad")
    assert done.code == 0, done.err
    assert f"skipped: {folder / '05.png'}: could not be read as a picture" in done.err
    assert (load(output).metadata.training or {})["images"] == 5


CONCEPTS = (
    *("--concept", PICTURES, "a photo of a V1 cat", "a photo of a cat"),
    *("--concept", pictures_path("police_car"), "a photo of a V2 car", "a photo of a car"),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of two steps on two concepts, with its run file and state beside it."""
    output = tmp_path_factory.mktemp("both") / "both.safetensors"
    more = ("--class-images", 2, "--steps", 2, "--unmix-weight", 0.5, "--unmix-resolution", 16, "--seed", 3)
    done = run("train", "tiny", *CONCEPTS, *FEW, *more, "-o", output)
    assert done.code == 0, done.err
    return output


def test_two_concepts_are_trained_and_recorded(both: Path) -> None:
    training = load(both).metadata.training or {}
    assert [concept["prompt"] for concept in training["concepts"]] == ["a photo of a V1 cat", "a photo of a V2 car"]
    assert (training["unmix_weight"], training["unmix_resolutions"]) == (0.5, [16])
    assert len([*(both.with_suffix(".run") / "class").iterdir()]) == 2


def test_the_run_file_of_concepts_repeats_the_run(both: Path, tmp_path: Path) -> None:
    again, file = tmp_path / "again.safetensors", both.with_suffix(".toml")
    assert file.read_text().count("[[concepts]]") == 2
    classes = both.with_suffix(".run") / "class"
    assert run("train", "--config", file, "--class-folder", classes, "-o", again, "-q").code == 0
    assert again.read_bytes() == both.read_bytes()


@pytest.mark.slow
def test_zero_given_as_an_option_wins_over_the_run_file(both: Path, tmp_path: Path) -> None:
    options = ("--config", both.with_suffix(".toml"), "--unmix-weight", 0, "--seed", 0, "--dry-run", "--json")
    found = json.loads(run("train", *options, "-o", tmp_path / "a").out)
    assert found["seed"] == 0
    assert "unmix_weight" not in found


def test_concepts_given_as_options_win_over_those_of_the_run_file(trained: Path, both: Path, tmp_path: Path) -> None:
    for file in (trained, both):
        concepts = ("--concept", PICTURES, "a photo of a V3 cat", "", "--concept", PICTURES, "a photo of V4", "")
        options = ("--config", file.with_suffix(".toml"), *concepts, "--unmix-weight", 0, "--dry-run", "--json")
        found = json.loads(run("train", *options, "-o", tmp_path / "a").out)
        assert found["concepts"] == [{"prompt": "a photo of a V3 cat"}, {"prompt": "a photo of V4"}]
        assert "prompt" not in found


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ((PICTURES,), "IMAGES is for one concept"),
        (("--prompt", "a cat"), "--prompt is for one concept"),
        (("--class-prompt", "a cat"), "--class-prompt is for one concept"),
        (("--token", "V1"), "--token is for one concept"),
    ],
)
def test_one_concept_is_not_described_beside_several(tmp_path: Path, more: tuple[object, ...], why: str) -> None:
    done = run("train", "tiny", *more, *CONCEPTS, "-o", tmp_path / "a.safetensors")
    assert (done.code, why in done.err) == (2, True)


def test_one_concept_is_not_described_beside_those_of_the_run_file(both: Path, tmp_path: Path) -> None:
    done = run("train", "--config", both.with_suffix(".toml"), "--prompt", "a cat", "-o", tmp_path / "a.safetensors")
    assert (done.code, "--prompt is for one concept" in done.err) == (2, True)


def test_mixing_one_concept_is_refused(tmp_path: Path) -> None:
    done = run("train", "tiny", PICTURES, *PROMPT, "--mix-probability", 0.5, "-o", tmp_path / "a.safetensors")
    refused(done, "mix_probability is for several concepts, and there is one: give two concepts or more")


def test_two_concepts_with_one_token_are_refused(tmp_path: Path) -> None:
    same = ("--concept", PICTURES, "a photo of a V1 car", "a photo of a car")
    done = run("train", "tiny", *CONCEPTS[:4], *same, "-o", tmp_path / "a.safetensors")
    refused(done, "the token 'V1' of 'a photo of a V1 car' is in 'a photo of a V1 cat' too")
