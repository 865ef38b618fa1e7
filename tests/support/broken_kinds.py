"""Broken pictures, entries of the cache and model cards, and all kinds that are fuzzed beside deltas."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from support.broken import (
    Draw,
    bases,
    broken_adapter,
    broken_base,
    broken_text,
    folder,
    normal,
    of_bytes,
    of_tensors,
    of_text,
    one_of,
    read_adapter,
    read_base,
    read_text,
)
from support.measured import Files, Target

from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import CacheError, DeltaError
from svdiff_delta.publish.card_metadata import parse_card
from svdiff_delta.publish.clean_images import clean_picture
from svdiff_delta.publish.license import licence_in
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import compute_basis
from svdiff_train.data.picture import inspect_image, load_image
from svdiff_train.settings.base_advice import advice_of

# --- Pictures ---


@cache
def pictures() -> Sequence[bytes]:
    noise = Image.effect_noise((24, 16), 60)
    found = []
    kinds = [
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("RGB", "BMP"),
        ("P", "BMP"),
        ("1", "BMP"),
    ]
    for mode, form in kinds:
        for more in ({}, {"exif": Image.Exif()}) if form != "BMP" else ({},):
            if more:
                more["exif"][0x0112] = 6
            stream = BytesIO()
            noise.convert("RGB").convert(mode).save(stream, form, **more)
            found.append(stream.getvalue())
    return found


def of_chunk(draw: Draw, raw: bytes) -> bytes:
    """Change what a chunk of a PNG holds; its checksum fits."""
    position, starts = 8, []
    while position + 12 <= len(raw):
        starts.append(position)
        position += 12 + int.from_bytes(raw[position : position + 4])
    start = draw.choice(starts)
    size = int.from_bytes(raw[start : start + 4])
    body = bytearray(raw[start + 4 : start + 8 + size])
    for _ in range(draw.choice([1, 2, 8])):
        if size:
            body[4 + draw.randrange(size)] = draw.choice([0, 1, 0x7F, 0xFF, draw.randrange(256)])
    return raw[: start + 4] + bytes(body) + struct.pack(">I", zlib.crc32(body)) + raw[start + 12 + size :]


def broken_picture(draw: Draw) -> tuple[str, Files]:
    raw = draw.choice(pictures())
    if raw.startswith(b"\x89PNG") and draw.random() < 0.5:
        return "chunk", {"a.png": of_chunk(draw, raw)}
    mutation, content = of_bytes(draw, raw)
    if draw.random() < 0.1:
        mutation, content = "splice", content[: draw.randrange(len(content) + 1)] + draw.choice(pictures())
    return mutation, {"a.png": content}


def read_picture(path: Path) -> None:
    with suppress(DeltaError):
        clean_picture(path)
    inspect_image(path)
    loaded = load_image(path, 8)
    assert bool(torch.isfinite(loaded.pixels).all())


# --- Entries of the cache, and cards ---

KEY = "A" * 22


@cache
def entries() -> Sequence[bytes]:
    found = []
    for seed, shape in enumerate([(6, 4), (4, 6), (5, 5)]):
        kept = BasisCache(folder() / f"entry{seed}")
        weight = normal(*shape, seed=seed)
        kept.put(KEY, compute_basis(weight, 0))
        found.append(kept.path(KEY).read_bytes())
    return found


def broken_entry(draw: Draw) -> tuple[str, Files]:
    mutation, content = of_tensors(draw, draw.choice(entries()))
    return mutation, {f"{KEY}.entry": content}


def read_cached(path: Path) -> None:
    kept = BasisCache(path.parent / "cache")
    place = kept.path(KEY)
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    if damaged := kept.damaged():
        raise CacheError(damaged[0][1])
    found = kept.get(KEY)
    assert found is not None, "an entry that is sound was not found"
    assert torch.isfinite(found.sigma).all(), "a value is not finite"


CARD = b"""---
license: apache-2.0
base_model: owner/base
tags:
- svdiff
instance_prompt: a photo of a sks dog
widget:
- text: a dog
  output: {url: images/sample-1.png}
svdiff:
  learning_rate: 0.02
  learning_rate_1d: 0.004
---
# A dog

A card.
"""


def broken_card(draw: Draw) -> tuple[str, Files]:
    return one_of(draw, {"README.md": CARD, **bases()["model"]}, of_text, "README.md")


def read_card(path: Path) -> None:
    with suppress(DeltaError):
        advice_of(Base(path.parent, {}))
    licence_in(parse_card(path.read_bytes().decode("utf-8", "replace")).fields)


TARGETS: dict[str, Target] = {
    "adapter": Target(10_000, 150, broken_adapter, read_adapter),
    "text": Target(10_000, 400, broken_text, read_text),
    "base": Target(5_000, 100, broken_base, read_base),
    "picture": Target(12_000, 400, broken_picture, read_picture),
    "entry": Target(5_000, 200, broken_entry, read_cached),
    "card": Target(5_000, 200, broken_card, read_card),
}
