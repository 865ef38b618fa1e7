"""`svdiff convert` to and from LoRA: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from safetensors.torch import load_file
from support.adapters import save_tensors
from support.commands import svdiff
from support.files import listing, written
from support.models import base_delta
from support.weights import normal

from svdiff_cli import convert as command
from svdiff_delta import load, save, select
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.energy_limits import LEAST
from svdiff_train.tiny import open_tiny

FLAT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(select(base_delta(open_tiny(), "mid", size=0.1), "2d", "4d").with_title("Dog"), "dog.safetensors")
    return Path("dog.safetensors")


def test_the_help_names_the_dialects_of_the_registry() -> None:
    def names(text: str) -> list[str]:
        return text.replace(" or ", ", ").split(", ")

    assert sorted(names(command.WRITTEN)) == sorted(name for name, dialect in DIALECTS.items() if dialect.write)
    assert sorted(names(command.READ)) == sorted(name for name, dialect in DIALECTS.items() if dialect.read)


def test_the_help_says_the_default_of_adapters() -> None:
    found = {dialect.min_energy for name, dialect in DIALECTS.items() if name in ("peft", "kohya", "lycoris", "flux")}
    (option,) = [p for p in command.convert.params if p.name == "min_energy"]
    assert isinstance(option, click.Option)
    assert found == {LEAST}
    assert f"[default: {LEAST} from an adapter, else 0]" in (option.help or "")
    assert LEAST == 0.1
    assert "From an adapter less than a tenth is refused" in " ".join((command.convert.help or "").split())


def test_the_help_says_what_is_written(delta: Path) -> None:
    def said(of: click.Command) -> str:
        (option,) = [p for p in of.params if p.name == "output"]
        assert isinstance(option, click.Option)
        return option.help or ""

    assert said(command.convert) == "The file to write; with --to peft a folder."
    assert said(command.rebase) == "The delta file to write."
    written = {}
    for dialect in DIALECTS:
        if DIALECTS[dialect].write:
            rank = [] if dialect == "full" else ["--rank", "2"]
            run = svdiff("convert", delta, "--to", dialect, "--base", "tiny", *rank, "-o", dialect)
            assert run.code == 0, run.err
            written[dialect] = Path(dialect).is_dir()
    assert [dialect for dialect, folder in written.items() if folder] == ["peft"]


def test_a_delta_becomes_lora_and_a_delta_again(delta: Path) -> None:
    run = svdiff("convert", delta, "--to", "kohya", "--base", "tiny", "--rank", "500", "-o", "lora.safetensors")
    assert (run.code, run.err) == (0, "")
    lines = run.out.splitlines()
    assert lines[0].split() == ["block", "parameters", "‖ΔW‖", "retained"]
    size = Path("lora.safetensors").stat().st_size
    assert lines[-1] == f"wrote lora.safetensors: {len(load(delta))} parameters, {size:,} bytes"
    run = svdiff("convert", "lora.safetensors", "--base", "tiny", "-o", "back.safetensors")
    assert run.code == 0, run.err
    assert load("back.safetensors").keys() == load(delta).keys()
    assert load("back.safetensors").metadata.title == "Dog"


def test_json_says_rank_and_retained_energy_of_each_layer(delta: Path) -> None:
    arguments = ["--to", "peft", "--base", "tiny", "--energy", "0.5", "--max-rank", "20", "-o", "lora", "--json"]
    run = svdiff("convert", delta, *arguments)
    facts = json.loads(run.out)
    tensors = load_file("lora/adapter_model.safetensors")
    assert facts["bytes"] == sum(map(len, written(Path("lora")).values()))
    for name, layer in facts["layers"].items():
        key = name.removeprefix("unet.").removesuffix(".weight")
        assert layer["rank"] == len(tensors[f"base_model.model.{key}.lora_A.weight"]) <= 20
        assert 0 < layer["captured"] <= 1
    assert len(facts["remarks"]) == 1
    assert run.err == ""


def test_a_poor_copy_is_remarked_and_ranks_are_listed(delta: Path) -> None:
    run = svdiff("convert", delta, "--to", "diffusers", "--base", "tiny", "--rank", "1", "--layers", "-o", "x")
    assert any(line.startswith("note: dog.safetensors: only ") for line in run.err.splitlines())
    assert "is retained at rank 1" in run.err
    (all_,) = [line for line in run.out.splitlines() if line.startswith("in all")]
    assert f"only {all_.split()[-1]} of the change is retained" in run.err
    layers = [line for line in run.out.splitlines() if line.endswith(".weight")]
    assert len(layers) == len(load(delta))
    assert all("rank 1 " in line for line in layers)


def test_from_one_dialect_to_another_both_shares_are_printed(delta: Path) -> None:
    svdiff("convert", delta, "--to", "peft", "--base", "tiny", "--rank", "4", "-o", "first")
    ways = ["convert", "first", "--to", "kohya", "--base", "tiny", "--rank", "2", "--force", "-o", "second"]
    facts = json.loads(svdiff(*ways, "--json").out)
    run = svdiff(*ways, "--layers")
    lines = run.out.splitlines()
    assert lines[0].split() == ["block", "parameters", "‖ΔW‖", "captured", "retained"]
    (all_,) = [line for line in lines if line.startswith("in all")]
    assert all_.split()[-2:] == ["100.00%", f"{facts['retained']:.2%}"]
    assert 0.1 < facts["retained"] < 0.99
    name, layer = next(iter(facts["layers"].items()))
    (line,) = [line for line in lines if line.endswith(name)]
    assert line.split()[:3] == ["100.00%", f"{layer['retained']:.2%}", "of"]
    assert "is retained at rank 2" in run.err


def test_a_dry_run_writes_nothing(delta: Path) -> None:
    before = listing(Path())
    run = svdiff("convert", delta, "--to", "kohya", "--base", "tiny", "--rank", "90", "-o", "x", "--dry-run")
    assert run.out.splitlines()[-1].startswith("would write x: ")
    assert listing(Path()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "kohya"], ["kohya: nothing says the rank", "give --rank"]),
        (["--to", "kohya", "--rank", "2", "--energy", "0.5"], ["--rank and --energy contradict each other"]),
        (["--to", "lora", "--rank", "2"], ["'lora': there is no such dialect", "known are delta, full, peft"]),
        (["--to", "full", "--rank", "2"], ["full: has no rank", "leave --rank and --energy away"]),
        (["--to", "flux", "--rank", "2"], ["flux: can be read and not written"]),
    ],
)
def test_what_cannot_work_is_one_line(delta: Path, arguments: list[str], words: list[str]) -> None:
    run = svdiff("convert", delta, "--base", "tiny", "-o", "x", *arguments)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    assert all(word in run.err for word in words)


def test_what_was_trained_as_lora_is_refused_with_the_reason(delta: Path) -> None:
    wide = open_tiny().shape("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")[0]
    tensors = {f"{FLAT}.lora_up.weight": normal(wide, 4), f"{FLAT}.lora_down.weight": normal(4, wide, seed=1)}
    save_tensors(Path("lora.safetensors"), tensors)
    run = svdiff("convert", "lora.safetensors", "--base", "tiny", "-o", "x.safetensors")
    assert run.code == 1
    assert "a shift can only stretch what the base has" in run.err
    assert "lower --min-energy" in run.err
    run = svdiff("convert", "lora.safetensors", "--base", "tiny", "-o", "x.safetensors", "--min-energy", "0")
    assert run.code == 0
    assert "no alpha in 1 module" in run.err
    assert "is captured; the rest is no stretching" in run.err


def test_a_manifest_converts_to_lora(delta: Path) -> None:
    row = {"input": "dog.safetensors", "output": "lora", "base": "tiny", "to": "peft", "rank": 3}
    Path("all.jsonl").write_text(json.dumps(row) + "\n")
    run = svdiff("convert", "--manifest", "all.jsonl", "--jobs", "1", "--json")
    (found,) = json.loads(run.out)["rows"]
    assert (run.code, run.err) == (0, "")
    assert Path("lora/adapter_config.json").is_file()
    assert 0 < found["captured"] < 0.9
    assert "is retained at rank 3" in found["remarks"][0]
