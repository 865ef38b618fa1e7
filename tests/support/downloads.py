"""What lies in the repositories that tests open."""

from __future__ import annotations

from svdiff_delta.format.file import dumps

from .deltas import random_delta

DELTA = random_delta(1, title="dog")
RAW = dumps(DELTA)
FILES = {
    "svdiff.safetensors": RAW,
    "config.json": b"{}",
    "README.md": b"# dog\n",
    "old/svdiff.safetensors": dumps(random_delta(2, title="old")),
    "evil.py": b"raise SystemExit",
    "weights.bin": b"\x80\x04.",
}
