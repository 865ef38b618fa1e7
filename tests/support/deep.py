"""What atheris reads texts as: the formats that people write, in front of the types of this program."""

from __future__ import annotations

import tempfile
from pathlib import Path

from svdiff_delta._util.limits import RECIPE, RUN_FILE
from svdiff_delta._util.regex import Pattern
from svdiff_delta._util.toml import read_toml
from svdiff_delta._util.typed import build
from svdiff_delta._util.yaml import parse_yaml
from svdiff_delta.base_model.layout import read_json
from svdiff_delta.conversion.peft_config import parse_config
from svdiff_delta.ops.merge.recipe import _Recipe

PLACE = Path(tempfile.mkdtemp(prefix="fuzz-deep-"))


def recipe(raw: bytes) -> None:
    """Read a recipe."""
    build(_Recipe, parse_yaml(raw, "it", RECIPE), "it")


def run_file(raw: bytes) -> None:
    """Read TOML."""
    (PLACE / "a.toml").write_bytes(raw)
    build(dict[str, dict[str, float]], read_toml(PLACE / "a.toml", RUN_FILE), "it")


def configuration(raw: bytes) -> None:
    """Read a base's configuration, and what it says as an adapter's."""
    (PLACE / "config.json").write_bytes(raw)
    parse_config(read_json(PLACE / "config.json"), "it")


def pattern(raw: bytes) -> None:
    """Match a regular expression."""
    text, _, name = raw.decode("utf-8", "replace").partition("\n")
    try:
        Pattern(text).matches(name)
    except ValueError:
        return


READERS = (recipe, run_file, configuration, pattern)


def read(raw: bytes) -> None:
    """Read a text by the reader that its first byte names."""
    READERS[raw[0] % len(READERS) if raw else 0](raw[1:])
