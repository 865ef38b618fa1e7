"""The table of limits says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from svdiff_delta._util import limits
from svdiff_delta._util.limits import KB, MB, Limit

TABLE = (Path(__file__).parents[3] / "docs" / "limits.md").read_text("utf-8")

NAMES = {
    "RECIPE": "merge recipe",
    "MANIFEST": "manifest, YAML",
    "MANIFEST_LINES": "manifest, JSONL",
    "RUN_FILE": "run file",
    "CARD_HEAD": "head of a model card",
    "CONFIGURATION": "config.json, model_index.json, configurations of schedulers and adapters",
    "INDEX": "index of a sharded model",
    "REPORT_LINES": "report of a manifest",
    "CAPTION_LINES": "metadata.jsonl",
    "RECORD": "class.json",
    "CAPTION": "caption beside a picture",
    "PROMPTS": "prompts or texts, one a line",
    "KEYS": "API keys, one a line",
    "ALIASES": "aliases in a YAML file",
    "NUMERAL": "characters of a number in YAML",
    "NAME_PARTS": "parts of a dotted name in TOML",
    "INCLUSIONS": "recipes within one another",
    "RECIPES": "recipes that one takes in, each counted once",
    "PATTERN": "characters of a selector, a glob or a regular expression",
    "STATES": "steps of an adapter's regular expressions, with their repetitions written out",
    "DIMENSIONS": "dimensions of a tensor",
    "PIXELS": "pixels of a picture, whatever its file",
    "PIXELS_PER_BYTE": "pixels of a larger picture, for each byte of its file",
    "MOST_PIXELS": "pixels of any picture",
    "PICTURE": "bytes of a picture's or a clip's file",
    "CLIP_FRAMES": "frames of a clip",
    "LAYERS": "layers, blocks or experts that a configuration may ask for",
    "MODULES": "layers and parameters of a model",
}


def size(number: int) -> str:
    return f"{number // MB} MB" if number >= MB else f"{number // KB} KB"


def row(name: str) -> str:
    """The row of the table that a limit should have."""
    value, lines = getattr(limits, name), ", 1 MB a line" if name.endswith("_LINES") or name == "PROMPTS" else ""
    if isinstance(value, Limit):
        each = " a line" if name.endswith("_LINES") else ""
        return f"| {NAMES[name]} | {size(value.bytes)}{lines} | {value.nodes:,}{each} | {value.depth} |"
    if name in ("CAPTION", "PROMPTS", "KEYS"):
        return f"| {NAMES[name]} | {size(value)}{lines} | | |"
    return f"| {NAMES[name]} | {size(value) if name == 'PICTURE' else f'{value:,}'} |"


def test_every_limit_stands_in_the_table() -> None:
    known = {name for name in vars(limits) if name.isupper()} - {"KB", "MB", "LINE"}
    assert known == set(NAMES)
    assert limits.LINE == MB
    assert [name for name in NAMES if row(name) not in TABLE.splitlines()] == []


def test_the_table_has_no_other() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and not re.match(r"\| (---|file|what)", line)]
    assert len(rows) == len(NAMES)
