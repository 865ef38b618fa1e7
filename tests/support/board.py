"""Deltas as a board meets them: plain ones, one with a card, one of another base, a loud one, and a mix of two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import save
from svdiff_delta.ops.merge import merge
from svdiff_delta.ops.weights import Weight

from .deltas import of_another_base
from .sd15 import sd15_delta
from .served import fill, shifted

CARD = """---
instance_prompt: a photo of a sks bird
widget:
- text: a sks bird in <b>snow</b>
  output:
    url: images/sample-1.png
- text: a sks bird at night
  output:
    url: images/sample-2.jpg
- text: not its own
  output:
    url: ../dog.png
- text: not there
  output:
    url: images/sample-9.png
---

# Bird <script>alert(1)</script>
"""


def fill_board(folder: Path) -> Path:
    """Write deltas into a folder, and return it.

    `dog`, `cat` and `pets/bird` shift cross-attention's keys and values by one number; `wide` shifts all of the UNet,
    at random; `carded/svdiff` has a card with two pictures; `other` is of another base, `sd15` of Stable Diffusion 1.5;
    `loud` is too large for half precision when its weight is 2; `both` is a mix of dog and cat; `broken` is no δ.
    """
    fill(folder)
    wide = varied("unet", 1)
    save(wide, folder / "wide.safetensors")
    save(Delta(dict(wide), of_another_base(wide.metadata)), folder / "other.safetensors")
    save(sd15_delta(), folder / "sd15.safetensors")
    save(shifted(40_000.0), folder / "loud.safetensors")
    weights = [Weight(0.8, {"unet-ca": 0.4, "down.1": 0.0}), Weight(0.5)]
    dog, cat = shifted(0.3), shifted(-0.3)
    save(merge([dog, cat], weights=weights).with_title("Both of them"), folder / "both.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no delta at all")
    _card(folder / "carded")
    return folder


def varied(selector: str, seed: int, size: float = 0.05) -> Delta:
    """Return a δ that shifts some layers at random, by a share of what `shifted` would."""
    start = shifted(0.0, selector)
    draw = np.random.default_rng(seed)
    values = {}
    for name, parameter in start.metadata.parameters.items():
        own = (draw.standard_normal(parameter.size) * size).astype(np.float32)
        for first, last in parameter.tied:
            own[first : last + 1] = own[first]
        own[parameter.size - parameter.null :] = 0
        values[name] = own
    return Delta(values, replace(start.metadata, training={"prompt": f"a photo of a sks thing {seed}"}))


def _card(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    save(varied("mid", 2).with_title("A bird"), folder / "svdiff.safetensors")
    (folder / "README.md").write_text(CARD)
    Image.new("RGB", (64, 64), (10, 120, 30)).save(folder / "images" / "sample-1.png")
    Image.new("RGB", (900, 600), (120, 10, 30)).save(folder / "images" / "sample-2.jpg")
