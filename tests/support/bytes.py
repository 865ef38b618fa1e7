"""Delta files built by hand, from JSON and struct alone, for the reader and the writer to agree with."""

from __future__ import annotations

import json
import struct
from math import prod
from typing import Any

NAME = "unet.conv_in.weight"
FINGERPRINT = "AAECAwQFBgcICQoLDA0ODw"  # base64url of the bytes 0 to 15
VALUES = (0.5, -1.25, 3.0)


def container(header: Any, body: bytes = b"") -> bytes:
    """Return a safetensors file: length, header, body. A header that is not bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(*shape: int, start: int = 0, dtype: str = "F32", item: int = 4) -> dict[str, Any]:
    """Return the header's entry of a tensor that starts at this byte."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + prod(shape) * item]}


def document(**changes: Any) -> dict[str, Any]:
    """Return the `svdiff` document of a file with one spectral parameter of three singular values."""
    return {
        "format": "svdiff-delta",
        "version": 1,
        "base": {"components": {"unet": "UNet2DConditionModel"}},
        "parameters": {"dtype": "F16", "fingerprints": FINGERPRINT, "shapes": "3x2x3x3"},
    } | changes


def columns(**changes: Any) -> dict[str, Any]:
    """Return the document with these columns changed, added, or (None) left out."""
    fields = document()["parameters"] | changes
    return document(parameters={key: value for key, value in fields.items() if value is not None})


def delta_file(fields: Any = None, *, body: bytes = struct.pack("<3f", *VALUES), **strings: str) -> bytes:
    """Return a delta file with this document (or its text) and further `__metadata__` strings."""
    fields = document() if fields is None else fields
    text = fields if isinstance(fields, str) else json.dumps(fields)
    return container({"__metadata__": {"svdiff": text, **strings}, NAME: entry(3)}, body)
