"""Files that people name: what is none is refused before it is opened, and what is too large before it is read."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from svdiff_delta import open_base
from svdiff_delta._util.limits import CAPTION, CONFIGURATION, MANIFEST, RECIPE, RUN_FILE
from svdiff_delta._util.reading import read_bytes, system_errors
from svdiff_delta.base_model.layout import read_json
from svdiff_delta.conversion.peft_config import read_config
from svdiff_delta.errors import BaseError, DeltaError, InputError, OutputError, refusal
from svdiff_delta.ops.merge.recipe import read_recipe
from svdiff_delta.publish.clean_images import clean_picture
from svdiff_train.batch.manifest import read_manifest
from svdiff_train.data.captions import read_captions
from svdiff_train.sampling.prompts import read_prompts
from svdiff_train.settings.runfile import read_run

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a recipe": ("a.yaml", read_recipe),
    "a manifest": ("a.yaml", read_manifest),
    "a manifest of lines": ("a.jsonl", read_manifest),
    "a run file": ("a.toml", read_run),
    "prompts": ("a.txt", read_prompts),
    "a caption": ("a.txt", lambda path: read_captions(path.parent, ["a.png"], ["a.txt"])),
    "metadata": ("metadata.jsonl", lambda path: read_captions(path.parent, ["a.png"], [])),
    "a configuration": ("config.json", read_json),
    "an adapter's configuration": ("adapter_config.json", read_config),
    "a base": ("config.json", lambda path: open_base(path.parent)),
    "a sample": ("a.png", clean_picture),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        os.chdir(path.parent)
        found.bind(path.name)


KINDS = {"pipe": pipe, "device": device, "socket": listening, "folder": Path.mkdir}


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, read: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / name)
    with pytest.raises(DeltaError) as found:
        read(tmp_path / name)
    said = str(found.value)
    assert name in said or "holds neither model_index.json nor config.json" in said
    assert kind in said or "Is a directory" in said or "holds neither" in said


@pytest.mark.parametrize(
    ("name", "read", "largest"),
    [
        ("a.yaml", read_recipe, RECIPE.bytes),
        ("a.yaml", read_manifest, MANIFEST.bytes),
        ("a.toml", read_run, RUN_FILE.bytes),
        ("config.json", read_json, CONFIGURATION.bytes),
        ("a.txt", lambda path: read_captions(path.parent, ["a.png"], ["a.txt"]), CAPTION),
    ],
)
def test_what_is_too_large_is_refused_by_its_size(
    tmp_path: Path, name: str, read: Callable[[Path], object], largest: int
) -> None:
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(largest + 1)  # a file with a hole in it
    with pytest.raises(DeltaError, match=rf"{name}: has more than {largest:,} bytes"):
        read(tmp_path / name)


def test_a_file_is_read_to_its_end_whatever_the_system_says_of_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(InputError, match="has more than 4 bytes"):
        read_bytes(tmp_path / "a", 4)
    assert read_bytes(Path("/proc/self/status"), 1_000_000)  # its size is said to be 0


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "\ud800", "a/b"])
@pytest.mark.parametrize("read", [read_recipe, read_run, read_json, read_prompts, open_base], ids=lambda f: f.__name__)
def test_a_path_that_no_file_has_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, read: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("")
    with pytest.raises(DeltaError) as found:
        read(Path(path))
    assert str(found.value).isprintable()


def test_a_folder_that_may_not_be_searched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(BaseError, match=r"locked.*could not be read \(Permission denied\)"):
        open_base(tmp_path / "locked")
    with pytest.raises(InputError, match=r"locked: could not be read \(Permission denied\)"):
        read_recipe(tmp_path / "locked")


def test_the_line_names_what_the_system_names() -> None:
    assert refusal("a", OSError(28, "No space left", "b"), "written") == "b: could not be written (No space left)"
    assert refusal("a", OSError(28, "No space left")) == "a: could not be read (No space left)"
    with pytest.raises(OutputError, match=r"^a: could not be written \(Disk quota exceeded\)$"):  # noqa: SIM117
        with system_errors("a", OutputError, "written"):
            raise OSError(122, "Disk quota exceeded")
    with pytest.raises(ValueError, match=r"^mine$"), system_errors("a", OutputError):
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"_class_name": 3}, "_class_name: must be a text or a list of texts, is 3"),
        ({"architectures": "BertModel"}, "architectures: must be a list of texts, is 'BertModel'"),
        ({"architectures": [None]}, r"architectures\[0\]: must be a text, is None"),
        ({"vocab_size": "100"}, "vocab_size: must be a whole number, is '100'"),
        ({"vocab_size": 1.5}, "vocab_size: must be a whole number, is 1.5"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: must be true or false, is 'no'"),
        ({"quantization_config": [1]}, "quantization_config: must be a mapping, is a list"),
        ({"quantization_config": {"quant_method": {}}}, "quantization_config.quant_method: must be a text"),
        ({"text_config": {"vocab_size": True}}, "text_config.vocab_size: must be a whole number, is True"),
        ({"weight_map": {"a": 1}}, "weight_map.a: must be a text, is 1"),
        ({"weight_map": ["a"]}, "weight_map: must be a mapping, is a list"),
        ({"sample_size": {}}, "sample_size: must be a whole number or a list of whole numbers, is an empty mapping"),
    ],
)
def test_a_configuration_with_values_of_wrong_types_is_refused_by_key(
    tmp_path: Path, text: dict[str, object], reason: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(BaseError, match=rf"config\.json: {reason}"):
        read_json(tmp_path / "config.json")


def test_what_is_not_read_may_be_anything_that_other_programs_write(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 7, "time_step_limit": [0.0, Infinity], "x": {"y": [null]}}')
    assert read_json(tmp_path / "config.json")["vocab_size"] == 7
