"""Named subsets of parameters: the paper's twelve (Table 1), and the like for transformers and text encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

Rule = Callable[[str, tuple[int, ...]], bool]
"""Whether a parameter of this name, whose weight has this shape, belongs to a subset."""


def _rule(component: str, part: str = "", dims: int | None = None) -> Rule:
    """Return the rule of components and keys that match these patterns, and weights of so many dimensions."""
    pattern = re.compile(rf"(?:{component})\.{part}")

    def rule(name: str, shape: tuple[int, ...]) -> bool:
        return pattern.match(name) is not None and (dims is None or len(shape) == dims)

    return rule


def _kind(dims: int) -> Rule:
    return lambda _, shape: len(shape) == dims


def _block(way: str, level: int) -> Rule:
    return _rule("unet", rf"{way}_blocks\.{level}\.")


_CROSS: Final = r".*\.attn2\.to_(?:q|k|v|out\.0)\.weight$"
_CROSS_KV: Final = r".*\.attn2\.to_[kv]\.weight$"
_TEXT: Final = r"text_encoder(?:_\d+)?"
_ATTENTION: Final = r".*(?:attn|attention|SelfAttention)"
_MLP: Final = r".*\b(?:mlp|ff|ff_context|ff_net|DenseReluDense|proj_mlp|intermediate)\b"

PAPER: Final[Mapping[str, Rule]] = {
    "unet": _rule("unet"),
    "unet-ca": _rule("unet", _CROSS),
    "unet-ca-kv": _rule("unet", _CROSS_KV),
    "unet-1d": _rule("unet", dims=1),
    "unet-2d": _rule("unet", dims=2),
    "unet-4d": _rule("unet", dims=4),
    "up": _rule("unet", r"up_blocks\."),
    "down": _rule("unet", r"down_blocks\."),
    "mid": _rule("unet", r"mid_block\."),
    "up-ca": _rule("unet", r"up_blocks\." + _CROSS),
    "down-ca": _rule("unet", r"down_blocks\." + _CROSS),
    "mid-ca": _rule("unet", r"mid_block\." + _CROSS),
}
"""The twelve subsets of Table 1; they hold for every UNet of diffusers, SDXL's included."""

OTHERS: Final[Mapping[str, Rule]] = {
    "transformer": _rule("transformer"),
    "transformer-attn": _rule("transformer", _ATTENTION),
    "transformer-mlp": _rule("transformer", _MLP),
    "transformer-1d": _rule("transformer", dims=1),
    "transformer-2d": _rule("transformer", dims=2),
    "text": _rule(_TEXT),
    "text-attn": _rule(_TEXT, _ATTENTION),
    "text-mlp": _rule(_TEXT, _MLP),
    "text-1": _rule("text_encoder"),
    "text-2": _rule("text_encoder_2"),
    "text-3": _rule("text_encoder_3"),
    "1d": _kind(1),
    "2d": _kind(2),
    "4d": _kind(4),
}
"""Subsets of diffusion transformers and text encoders, and the kinds by the weight's dimensions in every component."""

SUBSETS: Final[Mapping[str, Rule]] = {**PAPER, **OTHERS}
"""All named subsets, by the names that commands take."""

_LEVEL: Final = re.compile(r"(up|down)\.(\d{1,2})")


def subset(name: str) -> Rule | None:
    """Return the rule of a named subset or of a UNet's block such as `down.1`, in any case; None if unknown."""
    name = name.lower()
    if match := _LEVEL.fullmatch(name):
        return _block(match[1], int(match[2]))
    return SUBSETS.get(name)
