"""Calibration on prompts: the embedded base paints them, and the result says what both forms capture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import svdiff
from support.files import listing
from support.older import saved, shifts_for

from svdiff_delta import convert, load
from svdiff_delta.errors import InputError
from svdiff_train.batch import run_manifest
from svdiff_train.calibrate import calibration_on
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.prompts import read_prompts
from svdiff_train.tiny import base_path, open_tiny

KEYS = [
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight",
    "mid_block.resnets.0.conv1.weight",
    "mid_block.resnets.0.norm1.weight",
]
PROMPTS = ["a photo of a dog", "a photo of a red apple"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base's UNet with three layers and a norm changed at random."""
    path = tmp_path_factory.mktemp("tuned") / "unet.safetensors"
    weights = load_file(base_path() / "unet" / "diffusion_pytorch_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key in KEYS:
        weight = weights[key].float()
        weights[key] = weight + 0.02 * torch.randn(weight.shape, generator=generator)
    save_file(weights, path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(["", *PROMPTS, "  "]))
    return tmp_path / "prompts.txt"


def test_calibration_captures_more_of_the_outputs_and_is_repeatable(tuned: Path) -> None:
    base = open_tiny()
    calibration = calibration_on(lambda: load_pipeline(base), PROMPTS, steps=2)
    one, two = (convert(tuned, from_="full", base=base, calibration=calibration) for _ in range(2))
    plain = convert(tuned, from_="full", base=base)
    assert sorted(one.outputs) == sorted(f"unet.{key}" for key in KEYS[:3])
    for output in one.outputs.values():
        assert output.shares[1] > output.shares[0]
    assert one.captured < plain.captured
    assert all((one.delta[name] == two.delta[name]).all() for name in one.delta)
    assert (one.delta[f"unet.{KEYS[3]}"] == plain.delta[f"unet.{KEYS[3]}"]).all()


def test_the_command_says_what_both_forms_capture(tuned: Path, prompts: Path) -> None:
    output = prompts.with_name("out.safetensors")
    command = ["convert", tuned, "--from", "full", "--base", "tiny", "--calibrate", prompts, "--calibrate-steps", "2"]
    outcome = svdiff(*command, "-o", output, "--json")
    facts = json.loads(outcome.out)
    assert set(facts["outputs"]) == {f"unet.{key}" for key in KEYS[:3]}
    assert facts["output"]["calibrated"] > facts["output"]["plain"]
    lineage = load(output).metadata.lineage
    assert lineage is not None
    said = lineage.record.arguments["calibration"]
    assert {name: said[name] for name in ("layers", "prompts", "steps")} == {"layers": 3, "prompts": 2, "steps": 2}
    assert said["captured"] == pytest.approx(facts["output"]["calibrated"], abs=1e-6)
    assert b"red apple" not in output.read_bytes()
    outcome = svdiff(*command, "-o", output, "--force")
    assert f"{facts['output']['calibrated']:.2%} is captured; uncalibrated it would be" in outcome.out


def test_shifts_are_not_calibrated(prompts: Path, tmp_path: Path) -> None:
    base = open_tiny()
    calibration = calibration_on(lambda: load_pipeline(base), PROMPTS, steps=1)
    old = saved(tmp_path / "x.safetensors", shifts_for(base, {"conv_in.delta": "unet.conv_in.weight"}))
    with pytest.raises(InputError, match="holds shifts: there is nothing to calibrate"):
        convert(old, base=base, calibration=calibration)
    with pytest.raises(InputError, match="a delta is shifts already: there is nothing to calibrate"):
        convert(convert(old, base=base).delta, to="full", base=base, calibration=calibration)


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xff\xfe"], ids=["empty", "blank", "not UTF-8"])
def test_a_file_without_prompts_is_refused_before_anything_runs(tuned: Path, tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"prompts\.txt: (has no prompt|is not UTF-8)"):
        read_prompts(path)
    outcome = svdiff("convert", tuned, "--from", "full", "--base", "tiny", "--calibrate", path, "-o", tmp_path / "out")
    assert (outcome.code, listing(tmp_path)) == (1, ["prompts.txt"])


def test_calibration_needs_something_to_paint() -> None:
    with pytest.raises(InputError, match="at least 1 prompt and 1 step"):
        calibration_on(lambda: None, [])
    with pytest.raises(InputError, match="at least 1 prompt and 1 step"):
        calibration_on(lambda: None, PROMPTS, steps=0)


def test_a_base_that_paints_nothing_is_refused(tuned: Path, prompts: Path) -> None:
    outcome = svdiff(
        "convert", tuned, "--from", "full", "--base", base_path() / "unet", "--calibrate", prompts,
        "-o", prompts.with_name("out"),
    )  # fmt: skip
    assert outcome.code == 1
    assert "is one model, not a whole pipeline: name the pipeline's folder" in outcome.err


def test_a_row_of_a_manifest_is_calibrated_and_done_anew_with_other_prompts(tuned: Path, prompts: Path) -> None:
    row = {"input": str(tuned), "output": "out", "base": "tiny", "from": "full", "calibrate": prompts.name}
    manifest = prompts.with_name("all.jsonl")
    manifest.write_text(json.dumps({**row, "calibrate_steps": 1}) + "\n")
    assert [result.status for result in run_manifest(manifest)] == ["converted"]
    lineage = load(prompts.with_name("out")).metadata.lineage
    assert lineage is not None
    assert lineage.record.arguments["calibration"]["steps"] == 1
    assert [result.status for result in run_manifest(manifest)] == ["passed over"]
    prompts.write_text(PROMPTS[0])
    assert [result.status for result in run_manifest(manifest)] == ["converted"]
