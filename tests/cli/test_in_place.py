"""Outputs that are inputs too, by command and by the library; and files of another version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.bytes import delta_file, document
from support.commands import svdiff
from support.deltas import METADATA, random_delta, saved
from support.files import contents, listing

from svdiff_delta import add, load, save
from svdiff_delta.errors import OutputError, VersionError
from svdiff_delta.format.file import dumps

COMMANDS = {
    "add": ["add", "a", "b:-0.5", "a:2"],
    "interpolate": ["interpolate", "b", "a", "--alpha", "0.3"],
    "scale": ["scale", "a", "--factor", "-0.5"],
    "slice": ["slice", "a", "!mid"],
    "truncate": ["truncate", "a", "--rank", "2"],
    "quantize": ["quantize", "a", "--dtype", "f16"],
    "merge": ["merge", "a", "b", "--method", "ties", "--density", "0.5"],
    "a recipe": ["merge", "--recipe", "r.yaml"],
}
each_command = pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two deltas of one base, and a recipe that takes both."""
    monkeypatch.chdir(tmp_path)
    trained = replace(METADATA, training={"steps": 500})
    saved(random_delta(1, trained, title="Dog"), tmp_path / "a")
    saved(random_delta(2, trained), tmp_path / "b")
    (tmp_path / "r.yaml").write_text("inputs: [{delta: a}, {delta: b, weight: 3}]")
    return tmp_path


@each_command
def test_an_output_may_take_the_place_of_an_input(folder: Path, arguments: list[str]) -> None:
    assert svdiff(*arguments, "-o", "out").code == 0
    before = listing(folder)
    outcome = svdiff(*arguments, "-o", "a", "--force")
    assert (outcome.code, listing(folder)) == (0, before)
    assert Path("a").read_bytes() == Path("out").read_bytes()


@each_command
def test_an_input_is_replaced_as_a_whole_and_never_written_into(arguments: list[str]) -> None:
    old = Path("a").read_bytes()
    with Path("a").open("rb") as stream:
        assert svdiff(*arguments, "-o", "a", "--force").code == 0
        assert stream.read() == old
    assert Path("a").read_bytes() != old


@each_command
def test_an_input_is_not_overwritten_unless_told_so(folder: Path, arguments: list[str]) -> None:
    before = contents(folder)
    outcome = svdiff(*arguments, "-o", "a")
    assert (outcome.code, contents(folder)) == (1, before)
    assert "a: exists already" in outcome.err


def test_an_operation_that_fails_leaves_its_input(folder: Path) -> None:
    before = contents(folder)
    outcome = svdiff("scale", "a", "--factor", "1e30", "--dtype", "f16", "-o", "a", "--force")
    assert (outcome.code, contents(folder)) == (1, before)
    assert "F16 ends at 65504" in outcome.err


def test_the_same_file_under_another_name_may_be_the_output(folder: Path) -> None:
    expected = dumps(add(load("a"), load("b")))
    (folder / "link").symlink_to("a")
    assert svdiff("add", "link", "b", "-o", f"../{folder.name}/a", "--force").code == 0
    assert Path("a").read_bytes() == expected
    assert Path("link").read_bytes() == expected


def test_the_library_may_save_over_what_it_loaded_and_goes_on_reading_it() -> None:
    a, b = load("a"), load("b")
    values = {name: value.tolist() for name, value in a.items()}
    save(add(a, b), "a", overwrite=True)
    assert {name: value.tolist() for name, value in a.items()} == values
    lineage = load("a").metadata.lineage
    assert lineage is not None
    assert [lineage.files[sha256].title for sha256 in lineage.record.inputs] == ["Dog", None]


def test_the_library_does_not_save_over_what_it_loaded_unless_told_so(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(OutputError, match=r"^a: exists already"):
        save(add(load("a"), load("b")), "a")
    assert contents(folder) == before


def test_repeating_an_operation_in_place_goes_on_from_the_last_result() -> None:
    once = load("a")
    for _ in range(3):
        assert svdiff("scale", "a", "--factor", "2", "-o", "a", "--force").code == 0
    made = load("a")
    assert all((made[name] == 8 * once[name]).all() for name in once)
    assert made.metadata.lineage is not None
    assert len(made.metadata.lineage.files) == 3


LATER = json.dumps(
    {"version": 2, "format": "svdiff-delta", "parameters": [1, "another form"], "base": None, "lineage": 7}
)


@pytest.mark.parametrize("text", [json.dumps(document(version=2)), LATER], ids=["like this one", "in another form"])
def test_a_file_of_another_major_version_is_refused_with_both_versions(folder: Path, text: str) -> None:
    (folder / "later").write_bytes(delta_file(text))
    with pytest.raises(VersionError) as caught:
        load("later")
    assert caught.value.message == "later: version: the file has format version 2, this program reads version 1"
    assert caught.value.fix == "use a release of svdiff-delta that reads version 2"


@each_command
def test_a_command_refuses_a_file_of_another_major_version(folder: Path, arguments: list[str]) -> None:
    (folder / "a").write_bytes(delta_file(LATER))
    before = contents(folder)
    outcome = svdiff(*arguments, "-o", "out")
    assert (outcome.code, outcome.out, contents(folder)) == (1, "", before)
    assert "a: version: the file has format version 2, this program reads version 1" in outcome.err


@pytest.mark.parametrize("command", ["info", "verify", "lineage"])
def test_a_look_at_a_file_of_another_major_version_says_so(folder: Path, command: str) -> None:
    (folder / "later").write_bytes(delta_file(LATER))
    outcome = svdiff(command, "later")
    assert outcome.code == 1
    assert "later: version: the file has format version 2, this program reads version 1" in outcome.err
