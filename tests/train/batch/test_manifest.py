"""Manifests: what they say, what is refused before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.checkpoints import bert, changed
from support.files import listing
from support.pages import fences

from svdiff_cli import convert as commands
from svdiff_cli.convert_manifest import convert_many
from svdiff_delta.errors import InputError
from svdiff_train.batch import Row, run_manifest
from svdiff_train.batch.manifest import read_manifest
from svdiff_train.batch.row import KEYS

QUERY = "encoder.layer.0.attention.self.query.weight"
ROW = {"input": "tuned", "output": "out.safetensors", "base": "base"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    bert(folder / "base")
    changed(folder / "base", folder / "tuned", {QUERY: lambda weight: weight * 1.25})
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    for name in ("base", "tuned"):
        (tmp_path / name).symlink_to(models / name)
    return tmp_path


def manifest(folder: Path, *rows: dict | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "all.jsonl"


def test_yaml_and_jsonl_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "base: base\nmin_energy: 0.5\ndtype: f16\nfiles:\n"
        "  - {input: a, output: x, title: A}\n  - {input: b, output: y, min_energy: 0, from: full}\n"
    )
    lines = [
        {"input": "a", "output": "x", "base": "base", "min_energy": 0.5, "dtype": "F16", "title": "A"},
        {"input": "b", "output": "y", "base": "base", "min_energy": 0, "dtype": "F16", "from": "full"},
    ]
    rows = read_manifest(tmp_path / "all.yaml")
    assert rows == read_manifest(manifest(tmp_path, *lines))
    assert rows[1] == Row(
        input="b", output="y", base="base", from_="full", dtype="F16", min_energy=0, folder=str(tmp_path)
    )


def test_the_key_of_a_row_is_that_of_what_it_says_and_not_of_where_it_lies() -> None:
    row = Row.parse(ROW)
    assert row.key == Row.parse({**ROW, "to": "delta", "allow_unmatched": False}, Path("elsewhere")).key
    assert row.key != Row.parse({**ROW, "dtype": "F16"}).key


WRONG = {
    "an unknown key": ({**ROW, "treshold": 1}, r"row 2: has the unknown key 'treshold': known are input, output, base"),
    "a missing key": ({"input": "a", "output": "b"}, "row 2: has no base: give input .a text., output .a text., base"),
    "a wrong type": ({**ROW, "output": 3}, "row 2: output: must be a text, is 3"),
    "an empty text": ({**ROW, "base": ""}, "row 2: base: must be a text, is ''"),
    "a text for a flag": ({**ROW, "allow_unmatched": "no"}, "row 2: allow_unmatched: must be true or false, is 'no'"),
    "a flag for a number": ({**ROW, "min_energy": True}, "row 2: min_energy: must be a number, is True"),
    "a share above 1": (
        {**ROW, "output": "b", "min_energy": 1.5},
        r"row 2: the least captured energy must be within \[0, 1\], is 1.5",
    ),
    "no rank": ({**ROW, "output": "b", "to": "peft"}, "row 2: peft: nothing says the rank: give `rank`"),
    "rank 0": ({**ROW, "output": "b", "to": "peft", "rank": 0}, "row 2: `rank` must be at least 1, is 0"),
    "half a rank": ({**ROW, "to": "peft", "rank": 1.5}, "row 2: rank: must be a whole number, is 1.5"),
    "rank and energy": (
        {**ROW, "output": "b", "to": "peft", "rank": 2, "energy": 0.5},
        "row 2: `rank` and `energy` contradict each other",
    ),
    "a rank alone at the most": (
        {**ROW, "output": "b", "to": "peft", "max_rank": 2},
        "row 2: `max_rank` says nothing without `energy`",
    ),
    "a rank of a delta": ({**ROW, "output": "b", "rank": 2}, "row 2: delta: has no rank"),
    "a format for deltas": (
        {**ROW, "output": "b", "to": "peft", "rank": 2, "dtype": "I8"},
        "row 2: peft: cannot be stored as I8",
    ),
    "no way there": ({**ROW, "output": "b", "to": "flux"}, "row 2: flux: can be read and not written"),
    "no such device": (
        {**ROW, "output": "b", "calibrate": "prompts.txt", "device": "abacus"},
        "row 2: .*abacus",
    ),
    "no steps": ({**ROW, "calibrate_steps": 0}, "row 2: calibrate_steps: must be at least 1, is 0"),
    "half a step": ({**ROW, "calibrate_steps": 0.5}, "row 2: calibrate_steps: must be a whole number, is 0.5"),
    "no such prompts": ({**ROW, "output": "b", "calibrate": "no.txt"}, r"row 2: .*no\.txt: could not be read"),
    "an unknown format": ({**ROW, "dtype": "F8"}, "row 2: dtype: 'F8' is unknown: known are F32"),
    "no mapping": ("[1]", "row 2: must be a mapping"),
    "a key twice": ('{"input": "a", "input": "b"}', "line 2 is not valid JSON .*'input' stands twice"),
    "no JSON": ("input: a", "line 2 is not valid JSON"),
    "the same output": (
        {**ROW, "output": "./out.safetensors"},
        "row 2: ./out.*: is, holds or lies in the output of row 1",
    ),
    "the same row": (ROW, "row 2: out.safetensors: is, holds or lies in the output of row 1"),
    "an output in another": (
        {**ROW, "output": "out.safetensors/b"},
        "row 2: .*b: is, holds or lies in the output",
    ),
    "an output in the base": ({**ROW, "output": "base/b"}, "row 2: base/b: is, holds or lies in the base of row 1"),
    "an output in an input": ({**ROW, "output": "tuned/b"}, "row 2: tuned/b: is, holds or lies in the input of row 1"),
    "what is calibrated on as output": (
        {**ROW, "output": "prompts.txt", "calibrate": "prompts.txt"},
        "row 2: prompts.txt: is, holds or lies in the calibrate of row 2",
    ),
    "the manifest as output": ({**ROW, "output": "all.jsonl"}, "row 2: all.jsonl: is, holds or lies in the manifest"),
    "an input as output": (
        {**ROW, "output": "tuned"},
        "row 2: tuned: is, holds or lies in the input of row 1, and rows run side by side",
    ),
    "no such base": ({**ROW, "output": "b", "base": "nowhere"}, "row 2: nowhere: there is no such file or folder"),
    "no such variant": ({**ROW, "output": "b", "variant": "fp16"}, "row 2: .*fp16"),
    "no such input": ({**ROW, "output": "b", "input": "nowhere"}, "row 2: .*nowhere: there is no such file or folder"),
    "no such dialect": ({**ROW, "output": "b", "to": "gguf"}, "row 2: 'gguf': there is no such dialect"),
    "no such folder": ({**ROW, "output": "no/b"}, "row 2: .*no/b: the folder .* does not exist"),
    "an output that is there": ({**ROW, "output": "prompts.txt"}, "row 2: .*prompts.txt: exists already"),
}


@pytest.mark.parametrize(("row", "match"), WRONG.values(), ids=WRONG)
def test_a_row_that_cannot_work_is_named_and_nothing_is_started(folder: Path, row: dict | str, match: str) -> None:
    (folder / "prompts.txt").write_text("a dog")
    path = manifest(folder, ROW, row)
    with pytest.raises(InputError, match=match):
        run_manifest(path)
    assert listing(folder) == ["all.jsonl", "base", "prompts.txt", "tuned"]


@pytest.mark.parametrize("key", sorted(KEYS))
@pytest.mark.parametrize("value", [[["x"]], {"x": []}], ids=["list", "mapping"])
def test_a_value_of_another_type_is_named(folder: Path, key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"row 1: .*\b{key}\b"):
        read_manifest(manifest(folder, {**ROW, key: value}))


def test_of_many_wrong_rows_some_are_named_and_all_counted(folder: Path) -> None:
    path = manifest(folder, *({**ROW, "output": f"no/{number}"} for number in range(5)))
    with pytest.raises(InputError, match=r"nothing was started: row 1: .*; row 2: .*; row 3: .*; and 2 more rows"):
        run_manifest(path)


FILES = {
    "no rows": ("all.jsonl", "\n", "has no row"),
    "another suffix": ("all.json", "[]", "a manifest is a .yaml or .jsonl file"),
    "no list": ("all.yaml", "base: tiny\n", "must be a mapping with a list of rows in `files`"),
    "a list alone": ("all.yaml", "- {input: a}\n", "must be a mapping with a list of rows in `files`"),
    "a row's key for all": (
        "all.yaml",
        "input: a\nfiles: [{}]\n",
        "has the unknown key 'input': known are files, base",
    ),
    "an unknown key for all": ("all.yaml", "jobs: 2\nfiles: [{}]\n", "has the unknown key 'jobs'"),
    "a key twice": ("all.yaml", "files: []\nfiles: []\n", "the key 'files' stands twice"),
    "no YAML": ("all.yaml", "files: [", "is not valid YAML"),
    "code": ("all.yaml", "files: !!python/object/apply:os.getcwd []", "is not valid YAML"),
}


@pytest.mark.parametrize(("name", "text", "match"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=match):
        run_manifest(tmp_path / name)


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("all.yaml", "all.jsonl"):
        with pytest.raises(InputError, match=rf"{name}: could not be read"):
            run_manifest(tmp_path / name)


def test_neither_report_nor_table_may_be_the_manifest_an_output_or_one_another(folder: Path) -> None:
    path = manifest(folder, ROW, {**ROW, "output": "all.txt"})
    for name in ("all.jsonl", "out.safetensors", "all.report", "report.txt"):
        if name == "all.report":  # its table would be all.txt, an output
            assert (folder / name).with_suffix(".txt").name == "all.txt"
        with pytest.raises(InputError, match="the report or its table would be the manifest, an output or one another"):
            run_manifest(path, folder / name)


def test_the_manifest_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "many-files.md").read_text("utf-8")
    (text,) = fences(page, "yaml")
    (tmp_path / "all.yaml").write_text(text)
    rows = read_manifest(tmp_path / "all.yaml")
    assert [row.to for row in rows] == ["delta", "delta", "kohya"]
    said = text[: text.index("files:")]
    assert all(re.search(rf"\b{key}\b", said) for key in {*KEYS} - {"input", "output"})


OWN = {"input", "output", "base", "variant"}
"""Keys that stand for the command's IN, -o and BASE[:VARIANT]."""

PRINTED = {"source", "output", "base", "layers", "force", "dry_run", "as_json", "quiet"}
"""Parameters of the command that are of the whole run of a manifest, or of what is printed."""


def test_a_row_has_a_key_for_every_option_of_the_command_and_the_help_names_them() -> None:
    options = {param.name for param in commands.convert.params if param.name} - PRINTED
    assert {"from" if name == "from_" else name for name in options} == {*KEYS} - OWN
    text = " ".join((convert_many.help or "").split())
    assert all(re.search(rf"\b{key}\b", text) for key in KEYS)


def test_lora_s_options_are_keys_of_a_row() -> None:
    row = Row.parse({**ROW, "to": "kohya", "energy": 1, "max_rank": 8})
    assert (row.to, row.energy, row.max_rank) == ("kohya", 1, 8)
    assert row.key != Row.parse({**ROW, "to": "kohya", "energy": 1}).key


def test_there_is_at_least_one_process(folder: Path) -> None:
    with pytest.raises(InputError, match="there must be at least 1 process, not 0"):
        run_manifest(manifest(folder, ROW), jobs=0)
