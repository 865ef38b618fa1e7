"""The hashes by which a lineage names an input file (spec, section 8)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from svdiff_delta.container import read_header
from svdiff_delta.lineage import Source

BLOCK: Final = 1 << 20
"""Bytes of a file that are hashed at a time."""


def hash_file(path: Path) -> tuple[str, Source]:
    """Return the SHA-256 of a safetensors file, and its entry for a lineage; the file is read once."""
    whole, data = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        prefix = stream.read(8)
        header = prefix + stream.read(int.from_bytes(prefix, "little"))
        read_header(header, size)
        whole.update(header)
        while block := stream.read(BLOCK):
            whole.update(block)
            data.update(block)
    return whole.hexdigest(), Source(data.hexdigest())
