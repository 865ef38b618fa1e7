"""Set the limits of all readers: how large a text of a user or a stranger may be, as docs/limits.md lists them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Limit(NamedTuple):
    """What a reader takes of one kind of file.

    Attributes:
        bytes: of the file.
        nodes: values, keys and containers in it, each alias counted as what it stands for; before objects are made.
        depth: lists and mappings within one another.
    """

    bytes: int
    nodes: int
    depth: int


KB: Final = 2**10
MB: Final = 2**20

RECIPE: Final = Limit(MB, 20_000, 16)
MANIFEST: Final = Limit(4 * MB, 200_000, 16)
MANIFEST_LINES: Final = Limit(64 * MB, 200, 8)
"""Of a manifest in JSONL: bytes of the file, nodes and depth of a line."""
RUN_FILE: Final = Limit(256 * KB, 20_000, 16)
CARD_HEAD: Final = Limit(256 * KB, 10_000, 16)
CONFIGURATION: Final = Limit(16 * MB, 500_000, 32)
"""Of config.json, model_index.json and configurations of schedulers and adapters."""
INDEX: Final = Limit(64 * MB, 2_000_000, 8)
"""Of the index of a sharded model: one entry for each tensor."""
RECORD: Final = Limit(MB, 10_000, 8)
"""Of what this program keeps for itself, such as class.json."""
REPORT_LINES: Final = Limit(256 * MB, 10_000, 8)
"""Of a report: bytes of the file, nodes and depth of a line."""
CAPTION_LINES: Final = Limit(64 * MB, 10_000, 8)
"""Of metadata.jsonl: bytes of the file, nodes and depth of a line."""

CAPTION: Final = MB
"""Bytes of a text file with the caption of one picture."""
PROMPTS: Final = 16 * MB
"""Bytes of a file with a prompt or a text on each line."""
KEYS: Final = MB
"""Bytes of a file with an API key on each line."""
LINE: Final = MB
"""Bytes of a line, wherever a file is read by lines."""

ALIASES: Final = 1_000
"""Aliases (`*name`) in a YAML file."""
NUMERAL: Final = 1_000
"""Characters of a number in YAML and TOML."""
NAME_PARTS: Final = 32
"""Parts of a dotted name in TOML."""
INCLUSIONS: Final = 16
"""Recipes within one another."""
RECIPES: Final = 200
"""Recipes that one of them takes in, directly or not, each counted once."""
PATTERN: Final = 1_000
"""Characters of a selector, a glob or a regular expression."""
STATES: Final = 4_000
"""Steps that a regular expression may consist of when its repetitions are written out."""
DIMENSIONS: Final = 64
"""Of a tensor: what NumPy and torch take."""

PIXELS: Final = 2**24
"""Of a picture, whatever its file; a larger one needs a byte for `PIXELS_PER_BYTE` of them, as photographs have."""
PIXELS_PER_BYTE: Final = 64
MOST_PIXELS: Final = 2**27
"""Of any picture."""
PICTURE: Final = 512 * MB
"""Bytes of a picture's file, or of a clip's."""
CLIP_FRAMES: Final = 10_000
"""Frames of a clip."""
LAYERS: Final = 10_000
"""Layers, blocks or experts that a configuration may ask for."""
MODULES: Final = 100_000
"""Layers and parameters of a model that is built from a configuration."""
