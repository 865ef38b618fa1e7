"""Bad input: one line on standard error, exit code 1 or 2, nothing written, nothing left over."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.bytes import NAME, container, delta_file, document, entry
from support.commands import SVDIFF, Outcome, python, svdiff
from support.deltas import CONV, METADATA, QUERY, of_another_base, part, random_delta, saved
from support.files import contents

from svdiff_cli.references import needs
from svdiff_delta.errors import MissingExtraError

SUBSETS = (
    "a component (unet, transformer, text, text-1, text-2, text-3), "
    "a part (attn, ca, ca-kv, kv, mlp, experts, 1d, 2d, 4d, conv), both, as in unet-ca-kv, "
    "up, down, mid, up-ca, down-ca, mid-ca, down.1, up.1, or block.3"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two deltas of one base, one of another, and something in the way of an output."""
    monkeypatch.chdir(tmp_path)
    saved(random_delta(1), tmp_path / "a")
    saved(random_delta(2), tmp_path / "b")
    saved(random_delta(3, of_another_base()), tmp_path / "other")
    return tmp_path


def refused(*arguments: str) -> str:
    """Run a command that must fail with one line, write nothing and leave nothing; return that line."""
    before = contents(Path())
    outcome = svdiff(*arguments)
    assert contents(Path()) == before
    assert outcome.code == 1
    return one_line(outcome)


def one_line(outcome: Outcome) -> str:
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.endswith("\n")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    return outcome.err.removesuffix("\n")


def calculating(first: str = "a", second: str = "b", output: str = "out") -> dict[str, list[str]]:
    """Every command that writes, on these inputs and this output."""
    return {
        "add": ["add", first, second, "-o", output],
        "interpolate": ["interpolate", first, second, "--alpha", "0.5", "-o", output],
        "scale": ["scale", first, "--factor", "2", "-o", output],
        "slice": ["slice", first, "unet", "-o", output],
    }


def reading(path: str) -> dict[str, list[str]]:
    """Every command that reads, on this input."""
    return calculating(path) | {
        "add, second": ["add", "a", path, "-o", "out"],
        "interpolate, second": ["interpolate", "a", path, "--alpha", "0.5", "-o", "out"],
        "info": ["info", path],
        "verify": ["verify", path],
    }


@pytest.mark.parametrize("arguments", reading("missing").values(), ids=reading("missing"))
def test_a_missing_file_is_named(arguments: list[str]) -> None:
    assert refused(*arguments) == "error: missing: there is no such file"


def test_a_missing_file_with_a_weight_is_named_without_it() -> None:
    assert refused("add", "missing:0.5", "-o", "out") == "error: missing: there is no such file"


def test_a_weight_that_is_no_number_is_part_of_the_name() -> None:
    assert refused("add", "a:heavy", "-o", "out") == "error: a:heavy: there is no such file"


@pytest.mark.parametrize("arguments", reading("x" * 300).values(), ids=reading(""))
def test_a_name_too_long_for_a_file_is_refused(arguments: list[str]) -> None:
    assert refused(*arguments) == f"error: {'x' * 300}: could not be read (File name too long)"


@pytest.mark.parametrize("inside", ["adapter_config.json", "pytorch_lora_weights.safetensors"])
def test_a_folder_with_an_adapter_is_called_so(inside: str) -> None:
    Path("lora").mkdir(exist_ok=True)
    (Path("lora") / inside).write_text("{}")
    assert refused("info", "lora") == (
        "error: lora: is a folder with an adapter (LoRA), not a delta file: make a delta of it with `svdiff convert`"
    )


def test_a_folder_is_not_a_delta() -> None:
    assert refused("info", "/") == "error: /: could not be read (Is a directory)"


@pytest.mark.parametrize("arguments", [["info", "cut"], ["add", "a", "cut", "-o", "out"]], ids=["info", "add"])
def test_a_file_cut_off_at_any_length_is_refused(arguments: list[str]) -> None:
    raw = delta_file()
    for length in range(len(raw)):
        Path("cut").write_bytes(raw[:length])
        assert refused(*arguments).startswith("error: cut: ")


def zipped() -> bytes:
    """What a pickle checkpoint looks like to a reader: a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return buffer.getvalue()


NOT_A_DELTA = {
    "nothing": (b"", "the file has 0 bytes; a safetensors file has at least 8: fetch the file again"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "this is not a safetensors file"),
    "a text": (b"<!DOCTYPE html><html></html>", "this is not a safetensors file"),
    "a pickle checkpoint": (zipped(), "this is not a safetensors file"),
    "another safetensors file": (
        safetensors.numpy.save({"conv_in.weight": np.zeros((2, 2), np.float32)}),
        "without `svdiff` metadata, not a delta file: name a delta file",
    ),
    "a LoRA": (
        safetensors.numpy.save({"lora_unet_conv_in.lora_up.weight": np.zeros((2, 2), np.float32)}),
        "this is an adapter (LoRA), not a delta file: make a delta of it with `svdiff convert`",
    ),
    "a LoRA of diffusers": (
        safetensors.numpy.save({"unet.conv_in.lora_A.weight": np.zeros((2, 2), np.float32)}),
        "this is an adapter (LoRA), not a delta file: make a delta of it with `svdiff convert`",
    ),
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n",
        "this is a pointer of Git LFS, not the file itself: fetch the file with `git lfs pull`",
    ),
    "a byte too many": (delta_file() + b"\0", "1 byte follows the last tensor"),
    "a tensor twice": (
        container(b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{}}'),
        "the key 'w' stands twice",
    ),
    "a later version": (delta_file(document(version=2)), "format version 2, this program reads version 1: use a rel"),
    "an unknown feature": (delta_file(document(must_understand=["I8"])), "the file needs I8, which this program does"),
    "an unknown dtype": (
        container({"__metadata__": {"svdiff": json.dumps(document())}, NAME: entry(3, dtype="U8", item=1)}, bytes(3)),
        f"{NAME}: stored as U8; a delta file stores F32, F16, BF16, I8",
    ),
}


@pytest.mark.parametrize(("raw", "reason"), NOT_A_DELTA.values(), ids=NOT_A_DELTA)
def test_what_is_not_a_delta_file_is_refused_by_name(raw: bytes, reason: str) -> None:
    Path("not a delta").write_bytes(raw)
    for arguments in reading("not a delta").values():
        line = refused(*arguments)
        assert line.startswith("error: not a delta: ")
        assert reason in line


@pytest.mark.parametrize("arguments", reading("nan").values(), ids=reading(""))
def test_nan_is_refused_by_the_names_of_file_and_parameter(arguments: list[str]) -> None:
    Path("nan").write_bytes(Path("a").read_bytes()[:-4] + struct.pack("<f", float("nan")))
    assert refused(*arguments) == f"error: nan: {QUERY}: δ holds NaN or infinity: train or convert it again"


@pytest.mark.parametrize("arguments", list(calculating("a", "other").values())[:2], ids=["add", "interpolate"])
def test_inputs_of_different_bases_are_refused_by_the_name_of_a_parameter(arguments: list[str]) -> None:
    line = refused(*arguments)
    assert "the inputs were made for different bases (fingerprints " in line
    assert line.endswith(": combine only deltas of one base, or slices that do not overlap")


@pytest.mark.parametrize("alpha", ["-0.1", "1.5", "1.0000001", "nan", "inf"])
def test_alpha_outside_0_to_1_is_refused(alpha: str) -> None:
    assert refused("interpolate", "a", "b", "--alpha", alpha, "-o", "out") == (
        f"error: alpha must be within [0, 1], is {alpha}: use `add` with weights to go beyond"
    )


def test_interpolate_takes_no_weights() -> None:
    assert refused("interpolate", "a:0.5", "b", "--alpha", "0.5", "-o", "out") == (
        "error: interpolate takes no weights: use --alpha, or `svdiff add` with weights"
    )


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999"])
def test_a_weight_that_is_not_finite_is_refused(weight: str) -> None:
    line = f"error: a:{weight}: the weight {weight} is not a finite number: write it as FILE:0.8"
    assert refused("add", f"a:{weight}", "-o", "out") == line


@pytest.mark.parametrize("factor", ["nan", "inf"])
def test_a_factor_that_is_not_finite_is_refused(factor: str) -> None:
    assert refused("scale", "a", "--factor", factor, "-o", "out") == "error: weights must be finite numbers"


@pytest.mark.parametrize(("factor", "dtype"), [("1e10", "F16"), ("1e40", "F32"), ("1e40", "BF16"), ("1e308", "F32")])
def test_a_result_too_large_for_its_number_format_is_refused(factor: str, dtype: str) -> None:
    line = refused("scale", "a", "--factor", factor, "--dtype", dtype, "-o", "out")
    assert f", {dtype} ends at " in line
    assert line.endswith("use a wider --dtype")


def test_an_unknown_subset_lists_the_known_ones() -> None:
    assert refused("slice", "a", "unet-xa", "-o", "out") == (
        "error: 'unet-xa': is neither a subset nor a parameter here: "
        f"use a glob such as 'unet.mid_block.*', or {SUBSETS}"
    )


def test_a_glob_that_matches_nothing_is_refused() -> None:
    assert refused("slice", "a", "vae.*", "-o", "out") == (
        "error: 'vae.*': matches none of the 4 parameters here: see `svdiff info --layers`"
    )


def test_a_subset_that_matches_nothing_is_refused() -> None:
    saved(random_delta(1, part(METADATA, CONV)), Path("conv"))
    assert "'mid': matches none of the 1 parameters here" in refused("slice", "conv", "unet", "mid", "-o", "out")


@pytest.mark.parametrize("arguments", calculating(output="b").values(), ids=calculating())
def test_an_output_that_exists_is_not_overwritten(arguments: list[str]) -> None:
    line = "error: b: exists already: choose another output, or overwrite it with --force"
    assert refused(*arguments) == line
    assert refused(*arguments, "--dry-run") == line


@pytest.mark.parametrize("arguments", calculating(output="there/out").values(), ids=calculating())
def test_an_output_in_a_missing_folder_is_refused(folder: Path, arguments: list[str]) -> None:
    line = f"error: there/out: the folder {folder / 'there'} does not exist: create it first"
    assert refused(*arguments) == line
    assert refused(*arguments, "--dry-run") == line


def test_an_output_with_a_name_too_long_is_refused() -> None:
    line = f"error: {'x' * 300}: could not be written (File name too long): choose another output"
    assert refused("add", "a", "b", "-o", "x" * 300) == line


def test_a_folder_in_the_way_of_the_output_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    parent = tmp_path_factory.mktemp("parent")
    (parent / "out").mkdir()
    assert "out: exists already" in refused("add", "a", "b", "-o", str(parent / "out"))
    assert "could not be written (Is a directory)" in refused("add", "a", "b", "--force", "-o", str(parent / "out"))
    assert [path.name for path in parent.iterdir()] == ["out"]


FULL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); {SVDIFF}"


@pytest.mark.parametrize("arguments", calculating().values(), ids=calculating())
def test_a_full_disk_is_said_and_leaves_nothing(folder: Path, arguments: list[str]) -> None:
    before = contents(folder)
    outcome = python(FULL, *arguments, folder=folder)
    assert outcome.code == 1
    assert one_line(outcome) == (
        "error: out: could not be written (File too large): free some space or choose another output"
    )
    assert contents(folder) == before


def test_a_full_disk_leaves_the_old_file_when_overwriting(folder: Path) -> None:
    before = contents(folder)
    outcome = python(FULL, "add", "a", "b", "-o", "b", "--force", folder=folder)
    assert outcome.code == 1
    assert contents(folder) == before


ORDINARY = (
    "import ctypes\n"
    "no_capability = (ctypes.c_uint32 * 6)()\n"  # so that rights count, even for root
    "assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), no_capability) == 0\n" + SVDIFF
)


@pytest.fixture
def locked(folder: Path) -> Iterator[Path]:
    """The working folder, which nobody can write."""
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("arguments", calculating().values(), ids=calculating())
def test_an_unwritable_folder_is_said(locked: Path, arguments: list[str]) -> None:
    before = contents(locked)
    outcome = python(ORDINARY, *arguments, folder=locked)
    assert outcome.code == 1
    assert one_line(outcome) == f"error: out: the folder {locked} is not writable: choose another output"
    assert contents(locked) == before


def test_an_unreadable_file_is_said(folder: Path) -> None:
    (folder / "a").chmod(0)
    outcome = python(ORDINARY, "info", "a", folder=folder)
    assert outcome.code == 1
    assert one_line(outcome) == "error: a: could not be read (Permission denied)"


CLOSED = {
    "to read": ["info", "closed/a"],
    "to read, with a weight": ["add", "closed/a:0.5", "-o", "out"],
    "to write": ["add", "a", "-o", "closed/out"],
}


@pytest.mark.parametrize("arguments", CLOSED.values(), ids=CLOSED)
def test_a_folder_that_may_not_be_searched_is_said(folder: Path, arguments: list[str]) -> None:
    (folder / "closed").mkdir(mode=0)
    outcome = python(ORDINARY, *arguments, folder=folder)
    assert outcome.code == 1
    path = next(argument for argument in arguments if argument.startswith("closed/")).removesuffix(":0.5")
    assert one_line(outcome).startswith(f"error: {path}: could not be ")
    assert "(Permission denied)" in outcome.err


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=r"this needs missing, which .*: pip install 'svdiff-delta\[train\]'$"):
        needs("missing", "train")


def test_names_in_a_hostile_file_cannot_write_on_the_terminal() -> None:
    Path("hostile").write_bytes(container({"\x1b[2J\r\n\u2028w": {}}))
    line = refused("info", "hostile")
    assert line.startswith(r"error: hostile: \x1b[2J\r\n\u2028w: its header entry must have")


def test_ctrl_c_is_said_and_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("svdiff_delta.io.load", interrupt)
    outcome = svdiff("info", "a")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")


def test_a_reader_that_went_away_is_no_reason_to_complain(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", SVDIFF, "info", "a", "--json"],
        cwd=folder,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


USAGE = {
    "no command": (["sum"], "No such command 'sum'."),
    "no input": (["add", "-o", "out"], "Missing argument 'DELTA[:WEIGHT]...'."),
    "no output": (["add", "a", "b"], "Missing option '-o' / '--output'."),
    "no alpha": (["interpolate", "a", "b", "-o", "out"], "Missing option '--alpha'."),
    "an alpha that is no number": (
        ["interpolate", "a", "b", "--alpha", "half", "-o", "out"],
        "Invalid value for '--alpha': 'half' is not a valid float.",
    ),
    "no factor": (["scale", "a", "-o", "out"], "Missing option '--factor'."),
    "no selector": (["slice", "a", "-o", "out"], "Missing argument 'SELECTOR...'."),
    "an unknown option": (["add", "a", "--alpha", "1", "-o", "out"], "No such option"),
    "an unknown number format": (["add", "a", "--dtype", "F64", "-o", "out"], "Invalid value for '--dtype': 'F64' is"),
    "two deltas to scale": (["scale", "a", "b", "--factor", "1", "-o", "out"], "Got unexpected extra argument (b)"),
}


@pytest.mark.parametrize(("arguments", "reason"), USAGE.values(), ids=USAGE)
def test_wrong_usage_ends_with_2(arguments: list[str], reason: str) -> None:
    before = contents(Path())
    outcome = svdiff(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(f"Error: {reason}")
    assert contents(Path()) == before
