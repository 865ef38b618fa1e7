"""Commands that carry changes over: what they write, what they print, and what they refuse with one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import bert, changed
from support.commands import Outcome, svdiff
from support.files import listing
from support.models import base_delta

from svdiff_delta import bake, load, open_base, save
from svdiff_train.tiny import base_path, open_tiny

QUERY = "encoder.layer.0.attention.self.query.weight"
BIAS = "encoder.layer.0.attention.self.query.bias"


def refused(outcome: Outcome, *words: str) -> None:
    """The command failed with exit code 1 and one line that holds these words."""
    assert (outcome.code, outcome.out) == (1, "")
    line = outcome.err.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    for word in words:
        assert word in line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small model, a tuned copy in which a matrix grew, and one with a bias changed too."""
    monkeypatch.chdir(tmp_path)
    bert(Path("base"))
    changed(Path("base"), Path("tuned"), {QUERY: lambda weight: weight * 1.25})
    changed(Path("tuned"), Path("biased"), {BIAS: lambda weight: weight + 1})
    return tmp_path


@pytest.fixture
def delta(folder: Path) -> Path:
    save(base_delta(open_base("base"), size=0.01).with_title("Dog"), folder / "dog.safetensors")
    return Path("dog.safetensors")


def test_a_delta_becomes_full_weights_and_a_delta_again(delta: Path) -> None:
    outcome = svdiff("convert", delta, "--to", "full", "--base", "base", "-o", "full.safetensors")
    assert (outcome.code, outcome.err) == (0, "")
    size = Path("full.safetensors").stat().st_size
    assert outcome.out.splitlines()[-1] == f"wrote full.safetensors: {len(load(delta))} parameters, {size:,} bytes"
    outcome = svdiff("convert", "full.safetensors", "--base", "base", "-o", "back.safetensors")
    assert outcome.code == 0, outcome.err
    assert load("back.safetensors").keys() == load(delta).keys()
    assert load("back.safetensors").metadata.title == "Dog"


def test_a_tuned_model_becomes_a_delta_with_a_table_of_what_it_captures(folder: Path) -> None:
    outcome = svdiff("convert", "tuned", "--from", "full", "--base", "base", "-o", "tuned.safetensors", "--layers")
    assert (outcome.code, outcome.err) == (0, "")
    head, block, all_, empty, layer, wrote = outcome.out.splitlines()
    assert head.split() == ["block", "parameters", "‖ΔW‖", "captured"]
    assert block.split()[:3] == ["model", "0", "1"]
    assert all_.split()[:3] == ["in", "all", "1"]
    assert block.endswith("100.00%")
    assert (empty, layer.split()[-1]) == ("", f"model.{QUERY}")
    assert wrote.startswith("wrote tuned.safetensors: 1 parameter, 16 numbers, ")
    assert list(load("tuned.safetensors")) == [f"model.{QUERY}"]


def test_json_says_what_each_layer_captured(folder: Path) -> None:
    outcome = svdiff("convert", "biased", "--base", "base", "-o", "out.safetensors", "--allow-unmatched", "--json")
    facts = json.loads(outcome.out)
    weight = load_file("base/model.safetensors")
    assert facts["layers"][f"model.{QUERY}"]["norm"] == pytest.approx(float(weight[QUERY].norm()) / 4, rel=1e-5)
    assert facts["layers"][f"model.{QUERY}"]["captured"] == pytest.approx(1, abs=1e-6)
    assert facts["captured"] == pytest.approx(1, abs=1e-6)
    assert facts["left_out"] == {f"model.{BIAS}": "differs, and is of no kind that can be shifted"}
    assert (facts["unchanged"], facts["written"]) == (len(weight) - 2, True)
    assert (facts["parameters"], facts["numbers"], facts["bytes"]) == (1, 16, Path("out.safetensors").stat().st_size)


def test_json_of_full_weights(delta: Path) -> None:
    outcome = svdiff("convert", delta, "--to", "full", "--base", "base", "-o", "full.safetensors", "--json")
    facts = json.loads(outcome.out)
    assert (facts["output"], facts["written"]) == ("full.safetensors", True)
    assert (facts["parameters"], facts["bytes"]) == (len(load(delta)), Path("full.safetensors").stat().st_size)
    assert facts["captured"] == 1.0


def test_what_cannot_be_shifted_fails_the_command_and_is_listed_on_request(folder: Path) -> None:
    before = listing(folder)
    command = ["convert", "biased", "--base", "base", "-o", "out.safetensors"]
    refused(svdiff(*command), f"model.{BIAS} (differs, and is of no kind", "--allow-unmatched")
    assert listing(folder) == before
    outcome = svdiff(*command, "--allow-unmatched")
    assert outcome.code == 0, outcome.err
    assert f"left out: model.{BIAS}: differs, and is of no kind that can be shifted" in outcome.out.splitlines()


def test_embeddings_are_shifted_on_request(folder: Path) -> None:
    key = "embeddings.word_embeddings.weight"
    changed(Path("base"), Path("words"), {key: lambda weight: weight * 1.5})
    command = ["convert", "words", "--base", "base", "-o", "out.safetensors"]
    refused(svdiff(*command), f"model.{key}")
    assert svdiff(*command, "--embeddings").code == 0
    assert list(load("out.safetensors")) == [f"model.{key}"]


def test_a_poor_copy_is_said_to_be_one(folder: Path) -> None:
    changed(Path("base"), Path("random"), {QUERY: lambda weight: weight + weight.flip(0) * 0.1})
    command = ["convert", "random", "--base", "base", "-o", "out.safetensors"]
    outcome = svdiff(*command)
    assert outcome.err.startswith("note: random: only ")
    refused(svdiff(*command, "--force", "--min-energy", "0.9"), "less than the least share of 90.00%")
    refused(svdiff(*command, "--force", "--min-energy", "1.5"), "must be within [0, 1]")


def test_quiet_says_nothing(folder: Path, delta: Path) -> None:
    for command in (
        ["convert", "biased", "--base", "base", "--allow-unmatched", "-o", "a", "-q"],
        ["convert", delta, "--to", "full", "--base", "base", "-o", "b", "-q"],
        ["rebase", delta, "--base", "base", "--to", "tuned", "-o", "c", "-q"],
    ):
        outcome = svdiff(*command)
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "dog.safetensors", "--to", "full", "--base", "base"],
        ["convert", "tuned", "--base", "base"],
        ["rebase", "dog.safetensors", "--base", "base", "--to", "tuned"],
    ],
    ids=["to full", "from full", "rebase"],
)
def test_a_dry_run_says_what_it_would_write_and_writes_nothing(folder: Path, delta: Path, command: list[str]) -> None:
    before = listing(folder)
    dry = svdiff(*command, "-o", "out.safetensors", "--dry-run")
    assert listing(folder) == before
    wet = svdiff(*command, "-o", "out.safetensors")
    assert (dry.code, wet.code) == (0, 0)
    assert dry.out.replace("would write", "wrote") == wet.out
    again = svdiff(*command, "-o", "out.safetensors", "--dry-run")
    refused(again, "out.safetensors: exists already", "--force")


@pytest.mark.parametrize("target", ["tuned/model.safetensors", "base/model.safetensors"])
def test_an_output_that_is_part_of_base_is_refused_even_with_force(folder: Path, delta: Path, target: str) -> None:
    before = Path(target).read_bytes()
    outcome = svdiff("rebase", delta, "--base", "base", "--to", "tuned", "-o", target, "--force")
    refused(outcome, f"{target}: lies in what it would be made of")
    assert Path(target).read_bytes() == before


def test_an_input_is_never_replaced_by_its_conversion(delta: Path) -> None:
    before = delta.read_bytes()
    outcome = svdiff("convert", delta, "--to", "full", "--base", "base", "-o", delta, "--force")
    refused(outcome, "is what it would be made of")
    assert delta.read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_file_of_an_input_s_folder_is_replaced(folder: Path, name: str) -> None:
    before = Path("tuned", name).read_bytes()
    outcome = svdiff("convert", "tuned", "--from", "full", "--base", "base", "-o", Path("tuned", name), "--force")
    refused(outcome, f"tuned/{name}: lies in what it would be made of (tuned)")
    assert Path("tuned", name).read_bytes() == before


def test_an_unknown_dialect_is_refused_with_the_known_ones(delta: Path) -> None:
    refused(svdiff("convert", delta, "--to", "gguf", "--base", "base", "-o", "x"), "'gguf'", "delta, full")


def test_i8_is_for_deltas_alone(delta: Path) -> None:
    assert svdiff("convert", "tuned", "--base", "base", "--dtype", "I8", "-o", "small.safetensors").code == 0
    assert set(load("small.safetensors").dtypes.values()) == {"I8"}
    refused(svdiff("convert", delta, "--to", "full", "--dtype", "I8", "--base", "base", "-o", "x"), "I8", "--dtype F32")


def test_a_delta_of_another_base_is_refused(delta: Path, folder: Path) -> None:
    refused(
        svdiff("convert", delta, "--to", "full", "--base", "tuned", "-o", "x"), f"model.{QUERY}", "for another base"
    )


def test_rebase_carries_a_delta_to_another_base(delta: Path) -> None:
    outcome = svdiff("rebase", delta, "--base", "base", "--to", "tuned", "-o", "out.safetensors", "--title", "New dog")
    assert outcome.code == 0, outcome.err
    assert load("out.safetensors").metadata.title == "New dog"
    assert svdiff("verify", "out.safetensors", "--base", "tuned").code == 0
    refused(svdiff("verify", "out.safetensors", "--base", "base"), f"model.{QUERY}")


def test_rebase_names_what_the_new_base_lacks(delta: Path) -> None:
    changed(Path("base"), Path("less"), {QUERY: None})
    command = ["rebase", delta, "--base", "base", "--to", "less", "-o", "out.safetensors"]
    refused(svdiff(*command), f"model.{QUERY} (is not in the new base)", "--allow-unmatched")
    outcome = svdiff(*command, "--allow-unmatched")
    assert f"left out: model.{QUERY}: is not in the new base" in outcome.out.splitlines()


def test_the_lineage_of_a_conversion_is_drawn_and_not_replayed(delta: Path) -> None:
    svdiff("convert", delta, "--to", "full", "--base", "base", "-o", "full.safetensors")
    svdiff("convert", "full.safetensors", "--base", "base", "-o", "back.safetensors")
    drawn = svdiff("lineage", "back.safetensors").out
    assert "convert(captured 1, from full)" in drawn
    assert "convert(to full)" in drawn
    refused(svdiff("verify", "back.safetensors", "--replay", "."), "convert: cannot be repeated from files alone")


def test_one_component_of_the_embedded_base_may_be_a_file(tmp_path: Path) -> None:
    file = base_path() / "unet" / "diffusion_pytorch_model.safetensors"
    save(base_delta(open_tiny(), "mid-ca"), tmp_path / "dog.safetensors")
    outcome = svdiff("convert", tmp_path / "dog.safetensors", "--to", "full", "--base", file, "-o", tmp_path / "full")
    assert outcome.code == 0, outcome.err
    assert load_file(tmp_path / "full").keys() == load(tmp_path / "dog.safetensors").keys()


def test_a_whole_tuned_pipeline_becomes_a_delta(tmp_path: Path) -> None:
    base = open_tiny()
    bake(base, [base_delta(base, "mid-ca", size=1e-2)], tmp_path / "tuned", dtype="F32")
    outcome = svdiff("convert", tmp_path / "tuned", "--base", "tiny", "-o", tmp_path / "dog.safetensors")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[1].split()[:3] == ["unet", "mid", "4"]


def test_a_file_of_an_older_program_becomes_a_delta(folder: Path) -> None:
    key = QUERY.replace(".weight", ".delta")
    save_file({key: torch.full((16,), 0.25), "<dog>": torch.ones(16)}, "spectral_shifts.safetensors")
    command = ["convert", "spectral_shifts.safetensors", "--base", "base", "-o", "out.safetensors"]
    refused(svdiff(*command), "<dog> (is no shift of svdiff-pytorch)", "--allow-unmatched")
    outcome = svdiff(*command, "--allow-unmatched")
    assert outcome.code == 0, outcome.err
    assert "left out: <dog>: is no shift of svdiff-pytorch" in outcome.out.splitlines()
    assert load("out.safetensors")[f"model.{QUERY}"].tolist() == [0.25] * 16


def test_a_checkpoint_with_nan_is_refused(folder: Path) -> None:
    shutil.copytree("base", "broken")
    weights = load_file("broken/model.safetensors")
    save_file({**weights, QUERY: weights[QUERY] * float("nan")}, "broken/model.safetensors")
    refused(svdiff("convert", "broken", "--base", "base", "-o", "x"), f"model.{QUERY}", "broken holds NaN or infinity")
