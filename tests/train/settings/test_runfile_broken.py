"""Run files whose settings have another type, and those that are made to take time or memory."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from svdiff_delta.errors import InputError
from svdiff_train.settings.config import TrainConfig
from svdiff_train.settings.runfile import read_run

BASE = 'base = "tiny"\nimages = "a"\nprompt = "a photo of a sks dog"\n'
HINTS = get_type_hints(TrainConfig)


def values_of_others(kind: object) -> list[str]:
    """TOML of values that a setting of this type has not."""
    kinds = {*get_args(kind), kind}
    right = {
        bool: ["true"],
        int: ["3"],
        float: ["3", "1.5"],
        str: ['"x"'],
    }
    fitting = {text for each in kinds if isinstance(each, type) for text in right.get(each, [])}
    odd = ["true", "3", "1.5", '"x"', "[[1]]", "{a = 1}", "2000-01-01", "nan", "inf", "[true]"]
    return [text for text in odd if text not in fitting and not (text == '"x"' and kinds & {str})]


@pytest.mark.parametrize("name", sorted(field.name for field in fields(TrainConfig) if field.name != "concepts"))
def test_a_setting_of_another_type_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.toml"
    rest = "\n".join(line for line in BASE.splitlines() if not line.startswith(name))
    for text in values_of_others(HINTS[name]):
        path.write_text(f"{rest}\n{name} = {text}\n")
        if text == '"x"' and name in ("method", "crop", "mixed_precision"):
            continue
        with pytest.raises(InputError, match=rf"r\.toml: {name}(\[0\])?: must be"):
            read_run(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('flip = "x"', "flip: must be true or false, is 'x'"),
        ("steps = 1.5", "steps: must be a whole number, is 1.5"),
        ("base = 3", "base: must be a text, is 3"),
        ("images = []", "images: must be a text, is an empty list"),
        ('method = "svd"', "method: must be one of full, kv, lora, svdiff, is 'svd'"),
        ("selectors = ['a', 1]", r"selectors\[1\]: must be a text, is 1"),
        ("concepts = 3", r"concepts must be tables: write \[\[concepts\]\] above each"),
        ("concepts = [3]", "concepts must be tables"),
        ("[[concepts]]\nimages = 'a'\nprompt = 3", r"concepts\[0\]\.prompt: must be a text, is 3"),
        ("[[concepts]]\nimages = 3\nprompt = 'a'", r"concepts\[0\]\.images: must be a path, is 3"),
        ("learning_rate = nan", "learning_rate: must be a finite number, is nan"),
        ("x = " + "[" * 1_000, "is nested too deeply"),
        ("x = " + "[" * 17 + "]" * 17, "is nested too deeply"),
        ("a" + ".a" * 20_000 + " = 1", "has a name of more than 32 parts"),
        ('"a"' + ' . "a"' * 20_000 + " = 1", "has a name of more than 32 parts"),
        ("[" + "a." * 20_000 + "a]", "has a name of more than 32 parts"),
        ("x = [" + "1," * 30_000 + "]", "has more than 20,000 values"),
        ("x = " + "9" * 5_000, "could not be read as TOML"),
        ("x = 1\nx = 2", "could not be read as TOML"),
        ("x = 2000-99-99", "could not be read as TOML"),
        ("seed = 0x" + "f" * 200, "seed must be|could not|seed: must be"),
    ],
)
def test_it_is_refused_in_no_time(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "r.toml").write_text(f"{BASE if 'base' not in text and 'images =' not in text else ''}{text}\n")
    begun = time.process_time()
    with pytest.raises(InputError, match=reason):
        TrainConfig.from_facts(read_run(tmp_path / "r.toml"))
    assert time.process_time() - begun < 2


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"prompt = '\xff'")
    with pytest.raises(InputError, match=r"r\.toml: is not UTF-8 \(byte 10\): save it as UTF-8"):
        read_run(tmp_path / "r.toml")


def test_facts_of_another_type_are_refused_too() -> None:
    with pytest.raises(InputError, match="flip: must be true or false, is 1"):
        TrainConfig.from_facts({"prompt": "a", "flip": 1})
