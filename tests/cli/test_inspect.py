"""info and verify: what they print, for people and for machines."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.bytes import FINGERPRINT, NAME, VALUES, delta_file, document
from support.commands import svdiff
from support.deltas import CONV, METADATA, NORM, QUERY, TEXT, random_delta, random_values, saved

from svdiff_cli.main import PLACES
from svdiff_delta import add, scale

TRAINING = {"steps": 1500, "prompt": "a photo of a δ", "learning_rate": 1e-3, "selectors": ["up", "mid"]}


@pytest.fixture
def hand(tmp_path: Path) -> Path:
    """A file built by hand: three numbers, with a title and facts of its training."""
    base = {"components": {"unet": "UNet2DConditionModel"}, "repository": "owner/base", "revision": "main"}
    fields = document(base=base, training=TRAINING)
    path = tmp_path / "dog.safetensors"
    path.write_bytes(delta_file(fields, **{"modelspec.title": "Dog"}))
    return path


def test_info_says_what_is_in_the_file(hand: Path) -> None:
    norm = np.linalg.norm(VALUES)
    assert svdiff("info", hand).out.splitlines() == [
        "title       Dog",
        "base        owner/base main",
        "components  unet UNet2DConditionModel",
        "parameters  1",
        "numbers     3",
        "by kind     4D 3",
        "dtype       F32",
        f"norm        {norm:.4g}",
        "largest     3",
        "training    steps 1,500, prompt a photo of a δ, learning_rate 0.001, selectors up mid",
        "",
        "block         parameters   numbers        norm  largest |δ|",
        f"unet conv_in           1         3{norm:>12.4g}            3",
    ]


def test_info_leaves_out_what_the_file_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "dog").write_bytes(delta_file())
    lines = svdiff("info", tmp_path / "dog").out.splitlines()
    assert [line.split()[0] for line in lines[: lines.index("")]] == [
        "base",
        "components",
        "parameters",
        "numbers",
        "by",
        "dtype",
        "norm",
        "largest",
    ]
    assert lines[0] == "base        not named"


def test_info_lists_the_layers_when_asked(hand: Path) -> None:
    *_, blank, layer = svdiff("info", hand, "--layers").out.splitlines()
    assert blank == ""
    assert layer == f"{NAME}  spectral 3×2×3×3, 3 numbers, norm {np.linalg.norm(VALUES):.4g}"


def test_info_for_machines_is_stable(hand: Path) -> None:
    assert json.loads(svdiff("info", hand, "--json").out) == {
        "title": "Dog",
        "base": "owner/base main",
        "components": {"unet": "UNet2DConditionModel"},
        "parameters": 1,
        "numbers": 3,
        "by kind": {"4D": 3},
        "dtype": "F32",
        "norm": pytest.approx(np.linalg.norm(VALUES), rel=1e-12),
        "largest": 3.0,
        "made by": None,
        "training": TRAINING,
        "blocks": {
            "unet conv_in": {
                "parameters": 1,
                "numbers": 3,
                "norm": pytest.approx(np.linalg.norm(VALUES), rel=1e-12),
                "largest": 3.0,
            }
        },
        "layers": {
            NAME: {
                "kind": "spectral",
                "shape": [3, 2, 3, 3],
                "numbers": 3,
                "norm": pytest.approx(np.linalg.norm(VALUES), rel=1e-12),
                "dtype": "F32",
                "fingerprint": FINGERPRINT,
                "tied": [],
                "null": 0,
            }
        },
    }


def test_info_counts_by_dimensions_and_names_every_dtype(tmp_path: Path) -> None:
    path = saved(random_delta(1, dtypes={CONV: "F16", NORM: "BF16"}), tmp_path / "dog")
    facts = json.loads(svdiff("info", path, "--json").out)
    assert facts["by kind"] == {"1D": 5, "2D": 12, "4D": 6}
    assert facts["dtype"] == "BF16, F16, F32"


def test_info_gives_norms_in_float64(tmp_path: Path) -> None:
    path = saved(random_delta(1), tmp_path / "dog")
    facts = json.loads(svdiff("info", path, "--json").out)
    values = random_values(METADATA.parameters, 1)
    everything = np.concatenate([values[name].astype("f8") for name in (TEXT, CONV, NORM, QUERY)])
    assert facts["norm"] == pytest.approx(np.sqrt((everything**2).sum()), rel=1e-12)
    assert facts["largest"] == np.abs(everything).max()


def test_info_shows_tied_and_null_runs(tmp_path: Path) -> None:
    path = saved(random_delta(1), tmp_path / "dog")
    layer = json.loads(svdiff("info", path, "--json").out)["layers"][QUERY]
    assert (layer["tied"], layer["null"]) == ([[0, 1], [3, 5]], 2)


def test_info_says_which_operation_made_the_file(tmp_path: Path) -> None:
    path = saved(scale(random_delta(1), 2), tmp_path / "dog")
    assert "made by     scale" in svdiff("info", path).out.splitlines()


def test_verify_says_that_a_file_is_valid(hand: Path) -> None:
    outcome = svdiff("verify", hand)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{hand}: valid, 1 parameter\n", "")


def test_verify_says_it_to_machines(hand: Path) -> None:
    assert json.loads(svdiff("verify", hand, "--json").out) == {"valid": True, "fits": None, "parameters": 1}


def test_verify_can_be_quiet(hand: Path) -> None:
    outcome = svdiff("verify", hand, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize("command", ["verify", "info"])
def test_every_number_is_checked(tmp_path: Path, command: str) -> None:
    path = tmp_path / "dog"
    path.write_bytes(delta_file(body=struct.pack("<3f", 0, 0, float("inf"))))
    outcome = svdiff(command, path)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"error: {path}: {NAME}: δ holds NaN or infinity: train or convert it again\n"


def test_verify_checks_tied_runs(tmp_path: Path) -> None:
    fields = document()
    fields["parameters"]["tied"] = {NAME: "0-1"}
    (tmp_path / "dog").write_bytes(delta_file(fields))
    assert (
        f"{NAME}: δ differs within the tied run 0-1, where it must be equal" in svdiff("verify", tmp_path / "dog").err
    )


def test_the_version_is_said() -> None:
    assert svdiff("--version").out.startswith("svdiff, version 0.")


@pytest.mark.parametrize("command", [[], *([name] for name in PLACES)], ids=" ".join)
def test_help_is_there_for_every_command(command: list[str]) -> None:
    outcome = svdiff(*command, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"Usage: {' '.join(['svdiff', *command])} ")


def test_unknown_fields_do_not_disturb_info(tmp_path: Path) -> None:
    metadata = replace(METADATA, extra={"added later": 1}, foreign={"format": "pt"})
    assert svdiff("info", saved(random_delta(1, metadata), tmp_path / "dog")).code == 0


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A folder of two deltas, the half of one, and beside it the sum of that half and the other."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(["dog", "cat"], 1):
        saved(random_delta(seed), tmp_path / "in" / f"{name}.safetensors")
    half, whole = tmp_path / "half.safetensors", tmp_path / "sum.safetensors"
    assert svdiff("scale", tmp_path / "in" / "dog.safetensors", "--factor", "0.5", "-o", half).code == 0
    assert svdiff("add", half, tmp_path / "in" / "cat.safetensors", "-o", whole, "--title", "Sum").code == 0
    half.unlink()
    return tmp_path


def test_a_file_is_verified_by_doing_its_operations_again(sums: Path) -> None:
    outcome = svdiff("verify", sums / "sum.safetensors", "--replay", sums / "in")
    assert outcome.out == (
        f"{sums / 'sum.safetensors'}: valid, 4 parameters, "
        "the same bytes when replayed from 2 inputs, 1 files between made again\n"
    )
    facts = json.loads(svdiff("verify", sums / "sum.safetensors", "--replay", sums / "in", "--json").out)
    assert sorted(facts["replayed"]["inputs"].values()) == [
        str(sums / "in" / f"{name}.safetensors") for name in ("cat", "dog")
    ]
    assert len(facts["replayed"]["made"]) == 1


def test_a_file_that_is_not_what_its_lineage_says_is_refused(sums: Path) -> None:
    raw = bytearray((sums / "sum.safetensors").read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1  # the lowest bit of the first value
    (sums / "sum.safetensors").write_bytes(raw)
    outcome = svdiff("verify", sums / "sum.safetensors", "--replay", sums / "in")
    assert outcome.code == 1
    assert "what its lineage says gives another file (" in outcome.err


def test_a_missing_input_is_named_with_the_mend(sums: Path) -> None:
    (sums / "in" / "cat.safetensors").unlink()
    outcome = svdiff("verify", sums / "sum.safetensors", "--replay", sums / "in")
    assert outcome.code == 1
    assert "is not there: put that file into the folder" in outcome.err


def test_a_lineage_whose_inputs_double_is_drawn_with_each_file_once(tmp_path: Path) -> None:
    made = random_delta(1, METADATA, title="first")
    for _ in range(60):
        made = add(made, made, weights=(0.5, 0.5))
    saved(made, tmp_path / "last")
    lines = svdiff("lineage", tmp_path / "last").out.splitlines()
    assert len(lines) == 1 + 60 * 3
    assert sum(line.endswith("shown above") for line in lines) == 59
    assert json.loads(svdiff("lineage", tmp_path / "last", "--json").out)["operation"] == "add"
