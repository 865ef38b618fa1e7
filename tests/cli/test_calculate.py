"""add, interpolate, scale and slice: what they write, what they print."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from support.commands import Outcome, svdiff
from support.deltas import CONV, METADATA, NORM, PARAMETERS, QUERY, TEXT, part, random_delta, random_values, saved
from support.files import listing

from svdiff_delta import load

UNET = part(METADATA, CONV, NORM, QUERY)
A, B, C = random_values(PARAMETERS, 1), random_values(PARAMETERS, 2), random_values(UNET.parameters, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three deltas of one base, `c` without a text encoder."""
    monkeypatch.chdir(tmp_path)
    saved(random_delta(1, title="Dog"), tmp_path / "a")
    saved(random_delta(2), tmp_path / "b")
    saved(random_delta(3, UNET), tmp_path / "c")
    return tmp_path


def read(path: Path | str) -> dict[str, list[float]]:
    """The tensors of a file, by the safetensors library."""
    return {name: value.tolist() for name, value in sorted(safetensors.numpy.load_file(path).items())}


def rounded(values: Mapping[str, NDArray[np.float64]], dtype: str = "f4") -> dict[str, list[float]]:
    return {name: value.astype(dtype).tolist() for name, value in sorted(values.items())}


def done(outcome: Outcome) -> Outcome:
    """The command ended well and had nothing to remark."""
    assert (outcome.code, outcome.err) == (0, "")
    return outcome


def test_add_writes_the_sum() -> None:
    done(svdiff("add", "a", "b", "-o", "out"))
    assert read("out") == rounded({name: A[name].astype("f8") + B[name] for name in A})


def test_add_weighs_the_deltas() -> None:
    done(svdiff("add", "a:0.8", "b:-0.5", "-o", "out"))
    assert read("out") == rounded({name: 0.8 * A[name].astype("f8") - 0.5 * B[name].astype("f8") for name in A})


def test_add_takes_a_single_delta() -> None:
    done(svdiff("add", "a:2", "-o", "out"))
    assert read("out") == rounded({name: 2 * A[name].astype("f8") for name in A})


def test_a_delta_that_is_named_twice_counts_twice() -> None:
    done(svdiff("add", "a", "a:-3", "-o", "out"))
    assert read("out") == rounded({name: -2 * A[name].astype("f8") for name in A})


def test_a_file_whose_name_looks_like_a_weight_is_that_file(folder: Path) -> None:
    saved(random_delta(2), folder / "a:3")
    done(svdiff("add", "a:3", "-o", "out"))
    assert read("out") == rounded(B)


def test_a_colon_in_the_name_may_stand_before_the_weight(folder: Path) -> None:
    saved(random_delta(2), folder / "x:y")
    done(svdiff("add", "x:y:0.5", "-o", "out"))
    assert read("out") == rounded({name: 0.5 * B[name].astype("f8") for name in B})


def test_what_one_delta_lacks_counts_as_zeros_and_is_remarked() -> None:
    outcome = svdiff("add", "a", "c", "-o", "out")
    assert outcome.code == 0
    assert outcome.err == "note: c lacks 1 of 4 parameters; they count as zeros\n"
    assert read("out") == rounded({name: A[name].astype("f8") + C.get(name, 0) for name in A})


@pytest.mark.parametrize("option", ["--quiet", "--json"])
@pytest.mark.parametrize("arguments", [["add", "a", "c"], ["interpolate", "a", "c", "--alpha", "0.5"]], ids=" ".join)
def test_remarks_can_be_silenced(arguments: list[str], option: str) -> None:
    done(svdiff(*arguments, "-o", "out", option))


def test_interpolate_puts_alpha_on_the_first() -> None:
    done(svdiff("interpolate", "a", "b", "--alpha", "0.25", "-o", "out"))
    assert read("out") == rounded({name: 0.25 * A[name].astype("f8") + 0.75 * B[name].astype("f8") for name in A})


@pytest.mark.parametrize(("alpha", "expected"), [("1", A), ("0", B)])
def test_interpolate_reaches_its_ends(alpha: str, expected: Mapping[str, NDArray[np.float32]]) -> None:
    done(svdiff("interpolate", "a", "b", "--alpha", alpha, "-o", "out"))
    assert read("out") == rounded(expected)


def test_interpolate_remarks_what_one_side_lacks() -> None:
    outcome = svdiff("interpolate", "c", "a", "--alpha", "0.5", "-o", "out")
    assert outcome.err == "note: c lacks 1 of 4 parameters; they count as zeros\n"


@pytest.mark.parametrize("factor", [-0.5, 3.0])
def test_scale_multiplies(factor: float) -> None:
    done(svdiff("scale", "a", "--factor", str(factor), "-o", "out"))
    assert read("out") == rounded({name: factor * A[name].astype("f8") for name in A})


def test_slice_keeps_what_the_selectors_name() -> None:
    done(svdiff("slice", "a", "mid", "text_encoder.*", "-o", "out"))
    assert read("out") == rounded({name: A[name] for name in (TEXT, NORM, QUERY)})


def test_slice_keeps_number_formats(folder: Path) -> None:
    saved(random_delta(1, dtypes={CONV: "BF16"}), folder / "mixed")
    done(svdiff("slice", "mixed", "unet", "-o", "out"))
    with safetensors.safe_open("out", "numpy") as opened:
        assert {name: opened.get_slice(name).get_dtype() for name in opened.keys()} == {  # noqa: SIM118
            CONV: "BF16",
            NORM: "F32",
            QUERY: "F32",
        }


@pytest.mark.parametrize("dtype", ["F16", "f16"])
def test_a_result_can_be_stored_in_half_precision(dtype: str) -> None:
    done(svdiff("add", "a", "b", "--dtype", dtype, "-o", "out"))
    assert read("out") == rounded({name: A[name].astype("f8") + B[name] for name in A}, "f2")


def test_a_result_can_be_stored_in_bfloat16() -> None:
    done(svdiff("scale", "a", "--factor", "1", "--dtype", "bf16", "-o", "out"))
    bits = A[NORM].view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    raw = Path("out").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    start, stop = json.loads(raw[8 : 8 + length])[NORM]["data_offsets"]
    assert raw[8 + length + start : 8 + length + stop] == expected


def test_a_result_is_f32_whatever_the_inputs_are(folder: Path) -> None:
    saved(random_delta(1, dtypes=dict.fromkeys(PARAMETERS, "F16")), folder / "half")
    done(svdiff("scale", "half", "--factor", "1", "-o", "out"))
    assert {value.dtype for value in safetensors.numpy.load_file("out").values()} == {np.dtype("f4")}


COMMANDS = {
    "add": ["add", "a", "b"],
    "interpolate": ["interpolate", "a", "b", "--alpha", "0.5"],
    "scale": ["scale", "a", "--factor", "0.5"],
    "slice": ["slice", "a", "*"],
}
each_command = pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)


@each_command
def test_a_command_says_what_it_wrote(arguments: list[str]) -> None:
    outcome = done(svdiff(*arguments, "-o", "out"))
    size = Path("out").stat().st_size
    assert outcome.out == f"wrote out: 4 parameters, 23 numbers, {size:,} bytes\n"


@each_command
def test_a_command_says_it_to_machines(arguments: list[str]) -> None:
    outcome = done(svdiff(*arguments, "-o", "out", "--json"))
    assert json.loads(outcome.out) == {
        "output": "out",
        "parameters": 4,
        "numbers": 23,
        "bytes": Path("out").stat().st_size,
        "written": True,
    }


@each_command
def test_a_command_can_be_quiet(arguments: list[str]) -> None:
    assert done(svdiff(*arguments, "-o", "out", "--quiet")).out == ""
    assert Path("out").exists()


@each_command
def test_a_dry_run_writes_nothing_and_says_what_it_would(folder: Path, arguments: list[str]) -> None:
    before = listing(folder)
    dry = done(svdiff(*arguments, "-o", "out", "--dry-run"))
    assert listing(folder) == before
    wet = done(svdiff(*arguments, "-o", "out"))
    assert dry.out == wet.out.replace("wrote", "would write")


@each_command
def test_a_dry_run_says_so_to_machines(arguments: list[str]) -> None:
    assert json.loads(done(svdiff(*arguments, "-o", "out", "--dry-run", "--json")).out)["written"] is False


@each_command
def test_force_overwrites(arguments: list[str]) -> None:
    Path("out").write_bytes(b"old")
    done(svdiff(*arguments, "-o", "out", "--force"))
    assert len(read("out")) == 4


@each_command
def test_an_input_may_be_overwritten(arguments: list[str]) -> None:
    done(svdiff(*arguments, "-o", "out"))
    done(svdiff(*arguments, "-o", "a", "--force"))
    assert Path("a").read_bytes() == Path("out").read_bytes()


@each_command
def test_a_title_can_be_given(arguments: list[str]) -> None:
    done(svdiff(*arguments, "-o", "out", "--title", "Dog and δ"))
    with safetensors.safe_open("out", "numpy") as opened:
        assert opened.metadata()["modelspec.title"] == "Dog and δ"


@each_command
def test_nothing_but_the_output_is_left_behind(folder: Path, arguments: list[str]) -> None:
    before = listing(folder)
    done(svdiff(*arguments, "-o", "out"))
    assert listing(folder) == [*before, "out"]


@each_command
def test_no_path_gets_into_the_file(folder: Path, arguments: list[str]) -> None:
    done(svdiff(*arguments, "-o", folder / "the-output"))
    raw = (folder / "the-output").read_bytes()
    assert b"the-output" not in raw
    assert str(folder).encode() not in raw


@each_command
def test_the_lineage_names_the_command(arguments: list[str]) -> None:
    done(svdiff(*arguments, "-o", "out"))
    assert load("out").metadata.lineage.record.operation == arguments[0]


def test_a_result_can_be_calculated_with() -> None:
    done(svdiff("add", "a:1e18", "b", "-o", "large"))
    done(svdiff("scale", "large", "--factor", "1e-18", "-o", "out"))
    assert len(read("out")) == 4


def test_slices_of_different_bases_are_combined(folder: Path) -> None:
    other = replace(PARAMETERS[NORM], fingerprint="AAECAwQFBgcICQoLDA0ODw")
    saved(random_delta(4, replace(METADATA, parameters={NORM: other})), folder / "other")
    done(svdiff("slice", "a", "unet-4d", "-o", "conv"))
    assert svdiff("add", "conv", "other", "-o", "out").code == 0
    assert list(read("out")) == [CONV, NORM]
