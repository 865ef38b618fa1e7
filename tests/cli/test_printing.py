"""What reaches a terminal: no control characters of files, whatever its encoding, and one line on a full disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import SVDIFF, python, svdiff
from support.deltas import random_delta, saved

from svdiff_cli import printing
from svdiff_cli.main import COMMANDS
from svdiff_delta import Delta, save
from svdiff_delta._text.printable import ascii_json, harmless, json_text

CLI = Path(__file__).parents[2] / "cli" / "svdiff_cli"
EVIL = "\x1b]0;owned\x07 \x9b31m \x7f \u202egnp \u2028 é 🐕"
"""Escapes of terminals by one byte and two, DEL, a change of direction, a line break, and what is harmless."""

SHOWN = re.compile(r"[\n\t -~]*")


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    save(random_delta(1).with_title(EVIL), folder / "a.safetensors")
    saved(random_delta(2), folder / "b.safetensors")
    return folder / "a.safetensors"


def test_only_one_file_of_the_command_line_prints() -> None:
    found = [path.name for path in CLI.glob("*.py") if re.search(r"\bclick\.s?echo|\bprint\(", path.read_text())]
    assert found == ["printing.py"]


@pytest.mark.parametrize(
    "arguments",
    [["info", "{a}", "--json"], ["lineage", "{both}", "--json"], ["diff", "{a}", "{b}", "--json"], ["info", "{a}"]],
)
def test_what_a_file_says_does_nothing_to_a_terminal(delta: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert svdiff("add", delta, delta.with_name("b.safetensors"), "-o", tmp_path / "both", "--title", EVIL).code == 0
    places = {"a": delta, "b": delta.with_name("b.safetensors"), "both": tmp_path / "both"}
    found = svdiff(*(argument.format(**places) for argument in arguments))
    assert (found.code, found.err) == (0, "")
    if "--json" in arguments:
        assert SHOWN.fullmatch(found.out)
        text = json.dumps(json.loads(found.out))
        assert json.dumps(EVIL) in text or arguments[0] == "diff"
    else:
        assert all(char.isprintable() or char == "\n" for char in found.out)
        assert "é 🐕" in found.out


def test_json_is_the_same_when_its_escapes_are_read() -> None:
    value = {EVIL: [EVIL, 1, None], "\ud800"[:0]: "\x00\x1f\x80"}
    for indent in (None, 2):
        assert SHOWN.fullmatch(json_text(value, indent=indent))
        assert json.loads(json_text(value, indent=indent)) == value
    assert json.loads(ascii_json(json.dumps(value, ensure_ascii=False))) == value
    assert SHOWN.fullmatch(ascii_json(json.dumps(value, ensure_ascii=False)))


def test_lines_stay_lines() -> None:
    assert harmless("a\nb\tc") == "a\nb\tc"
    assert harmless("a\r\x1b[2J\x85") == "a\\r\\x1b[2J\\x85"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_that_lacks_characters_is_no_error(delta: Path, encoding: str) -> None:
    for arguments in (["info", str(delta)], ["train", "--help"], ["info", str(delta), "--json"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SVDIFF, *arguments],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout


@pytest.mark.parametrize("arguments", [["info", "{a}"], ["info", "{a}", "--json"], ["--help"], ["train", "--help"]])
def test_a_full_disk_is_one_line(delta: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SVDIFF, *(argument.format(a=delta) for argument in arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: the output: could not be written (No space left on device)\n",
    )


def test_nobody_who_reads_is_no_error(delta: Path) -> None:
    code = f"import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n{SVDIFF}"
    found = python(code, "info", delta, "--layers")
    assert (found.code, found.err) == (1, "")


def test_what_no_function_expects_of_the_system_is_one_line(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> Delta:
        raise PermissionError(13, "Permission denied", "locked/\x1bfile")

    monkeypatch.setattr("svdiff_delta.io.load", refuse)
    found = svdiff("info", delta)
    assert (found.code, found.err) == (1, "error: locked/\\x1bfile: could not be read or written (Permission denied)\n")


@pytest.mark.parametrize(
    "command", ["info", "lineage", "bake", "convert", "basis", "merge", "generate", "edit", "push"]
)
def test_a_path_that_no_system_takes_is_one_line(delta: Path, tmp_path: Path, command: str) -> None:
    assert command in {name for names in COMMANDS.values() for name in names}
    long = "x" * 5_000
    given = {
        "bake": [long, delta, "-o", tmp_path / "out"],
        "convert": [long, "tiny", "-o", tmp_path / "out"],
        "basis": ["build", long],
        "merge": [long, "-o", tmp_path / "out"],
        "generate": [long, delta, "-o", tmp_path / "out.png", "--prompt", "a"],
        "edit": ["tiny", long, "--edit", "a", "-o", tmp_path / "out.png"],
        "push": [long, "owner/name"],
    }.get(command, [long])
    found = svdiff(command, *given)
    assert found.code in (1, 2)
    assert len(found.err.splitlines()) <= 4
    assert "error" in found.err.lower()


def test_streams_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = object()
    monkeypatch.setattr(sys, "stdout", stream)
    printing.prepare_streams()
    assert sys.stdout is stream


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_a_closed_standard_output_is_an_error(tmp_path: Path, how: tuple[str, ...]) -> None:
    saved(random_delta(), tmp_path / "a")
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "svdiff_cli", "info", "a", *how]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: standard output is closed: leave it open, or send it to /dev/null\n"
