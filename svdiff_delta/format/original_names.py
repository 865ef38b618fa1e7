"""Name the layers of diffusers' transformers as the families' original code does, and the other way round.

ComfyUI, kohya's scripts and musubi-tuner go by those names. One original layer may hold several of diffusers', its rows
one after the other: attention's q, k and v as a rule. The tables are checked against diffusers' own converters of
checkpoints (0.42.1) and of LoRA, and against ComfyUI's key maps (its `comfy/lora.py` and `comfy/utils.py` of 2026).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from .original_layer import Layer, Swap
from .original_layers import ORIGINALS

ALIKE: Final = (
    "QwenImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "ErnieImageTransformer2DModel",
    "Kandinsky5Transformer3DModel",
)
"""Transformers whose layers are called in the original code, and in ComfyUI, as in diffusers."""


@dataclass(frozen=True)
class Original:
    """A layer under its original name.

    Attributes:
        name: that name, with the number of its block.
        parts: the paths of diffusers' layers that it holds.
        swap: as in `Layer`.
    """

    name: str
    parts: tuple[str, ...]
    swap: Swap = ""


def original_of(kind: str, path: str) -> Original | None:
    """Return the layer of the original code that holds one of diffusers'; None if it is called alike.

    Args:
        kind: the class of the transformer.
        path: the path of diffusers' layer.
    """
    for layer in ORIGINALS.get(kind, ()):
        for part in () if layer.reads else layer.parts:
            if match := _pattern(part, flat=False).fullmatch(path):
                return _filled(layer, match.groups())
    return None


def parts_of(kind: str, name: str, *, flat: bool = False) -> Original | None:
    """Return the layer of the original code that has a name; None if there is none.

    Args:
        kind: the class of the transformer.
        name: the original name, dotted or flat.
        flat: whether it has underscores for dots.
    """
    for layer in ORIGINALS.get(kind, ()):
        if match := _pattern(layer.name, flat=flat).fullmatch(name):
            return _filled(layer, match.groups())
    return None


def _filled(layer: Layer, numbers: tuple[str, ...]) -> Original:
    return Original(layer.name.format(*numbers), tuple(part.format(*numbers) for part in layer.parts), layer.swap)


@cache
def _pattern(template: str, *, flat: bool) -> re.Pattern[str]:
    """Return what matches a template's names, with or without dots, and finds the number of the block."""
    name = template.replace(".", "_") if flat else template
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


def is_known(kind: str) -> bool:
    """Tell whether the original names of a denoiser's layers are known here."""
    written = any(not layer.reads for layer in ORIGINALS.get(kind, ()))
    return written or kind in ALIKE or kind == "UNet2DConditionModel"


def turned(original: Original, shape: tuple[int, ...]) -> bool:
    """Tell whether a layer has its halves of rows in the other order than diffusers; a continuous norm has two."""
    return original.swap == "always" or (original.swap == "continuous" and shape[0] == 2 * shape[1])
