"""Parts of a model by the names of its modules: attention, its keys and values, feed-forward, blocks.

One table for all models: UNets and transformers of diffusers and the language models of transformers have few words for
these. Only names are looked at, so that a delta can be sliced without its base. Other implementations read the patterns
in `spec/v1/modules.json`, and the rules that go with them in section 7.5 of the spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

ATTENTION: Final = re.compile(
    r"(?!.*(?:norm|blocks|layers|scale_shift|_gate\b|_proj\b))\w*(?:attn|attention)\w*(?<!s)", re.IGNORECASE
)
"""A module that is an attention layer. The plural holds several, with other layers between them."""

PROJECTION: Final = re.compile(r"to_(?:q|k|v|qk|kv|qkv|out|add_out)(?:_\w+)?|query|key|value|proj_attn")
"""A part of an attention layer, where the layer around it has no name that says so."""

KEYS_AND_VALUES: Final = re.compile(r"(?!.*norm)(?:\w*_)?(?:k|v|kv|w?qkvz?|key|value)(?:_\w+)?|c_attn", re.IGNORECASE)
"""A projection to keys or values. A fused one, which makes the queries too, cannot be told apart further."""

CROSS: Final = re.compile(
    r"\w*attn2|\w*cross_?att(?:n|ention)\w*|EncDecAttention|encoder_attn|\w+_to_\w+_attn|face_adapter", re.IGNORECASE
)
"""An attention layer whose keys and values come from elsewhere than its queries."""

ADDED: Final = re.compile(
    r"add_(?:q|k|v|kv|qkv)_proj|to_add_out|norm_added_\w+|to_(?:q|k|v|out)_t|[qk]_rms_norm_t|txt_(?:\w+_)?(?:kv|qkv|proj)"
)
"""The text's own part of an attention layer that text and picture share."""

BESIDE: Final = ("attn", "attn1")
"""What stands beside `attn2`: it attends to the text beside `attn1`, and once more to the picture beside `attn`."""

FEED_FORWARD: Final = re.compile(
    r"(?!.*(?:norm|adaln|embed))(?:\w+_)?(?:mlp|ff|ffn|feed_forward|intermediate|experts?)(?:_\w+)?"
    r"|DenseReluDense|fc[12]|(?:gate|up|down|gate_up)_proj"
)
"""A feed-forward layer, where it stands in a block. Embedders of time and text, which have such parts too, do not."""

FUSED: Final = re.compile(r"\w*_mlp_\w+")
"""A projection of an attention layer that is one with that of the feed-forward beside it."""

OUTPUT: Final = re.compile(r"layer\.\d+\.output\.")
"""The second half of BERT's feed-forward."""

BLOCK: Final = re.compile(r"\.(?:\w*(?:blocks?|layers?|refiner)|h)\.(\d+)\.")
"""A block of a row of blocks, by its number; the outermost counts."""


EXPERT: Final = re.compile(r"\.experts\.\d+\.|\[\d+\]$")
"""One of several experts: a module of a row of them, or a slice of a stacked tensor (spec, section 4.1)."""

LONGEST: Final = 255
"""Characters of the longest module that a pattern is tried on: the time of some grows with their square."""

MOST_DIGITS: Final = 9
"""Digits of the largest number of a block; selectors name blocks by at most three."""


class Part(NamedTuple):
    """What a weight is part of.

    Attributes:
        attn: an attention layer.
        ca: one that attends to another sequence, or the text's part of a joint one.
        kv: the projections to keys and values.
        mlp: a feed-forward layer.
        block: the number of the outermost block; None if it is in none.
    """

    attn: bool
    ca: bool
    kv: bool
    mlp: bool
    block: int | None


@lru_cache(maxsize=1 << 16)
def part_of(name: str) -> Part:
    """Return what a parameter is part of, by its name."""
    modules = name.split(".")[1:-1]
    attn = _any_is(ATTENTION, modules) or _any_is(PROJECTION, modules)
    cross = attn and (_any_is(CROSS, modules) or _any_is(ADDED, modules))
    kv = attn and _any_is(KEYS_AND_VALUES, modules)
    return Part(attn, cross, kv, _is_feed_forward(name, modules, attn=attn), _block_of(name))


def _any_is(pattern: re.Pattern[str], modules: list[str]) -> bool:
    return any(len(module) <= LONGEST and pattern.fullmatch(module) for module in modules)


def _block_of(name: str) -> int | None:
    block = BLOCK.search(name)
    return int(block[1]) if block and len(block[1]) <= MOST_DIGITS else None


def _is_feed_forward(name: str, modules: list[str], *, attn: bool) -> bool:
    if attn:
        return _any_is(FUSED, modules)
    first = next((index for index, module in enumerate(modules) if module.isdigit()), len(modules))
    inner = modules[first + 1 :]
    if any("norm" in module for module in inner):  # norms that are steered by small networks of their own
        return False
    return _any_is(FEED_FORWARD, inner) or OUTPUT.search(name) is not None


def picture_twice(names: Iterable[str]) -> frozenset[str]:
    """Return the blocks whose `attn2` attends to the picture like their `attn`, by what is beside it."""
    blocks = {kind: {name.partition(f".{kind}.")[0] for name in names if f".{kind}." in name} for kind in BESIDE}
    return frozenset(blocks["attn"] - blocks["attn1"])
