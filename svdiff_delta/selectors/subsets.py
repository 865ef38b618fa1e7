"""Named subsets of parameters: the paper's twelve (Table 1), and the same words for every component of every family."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from .structure import EXPERT, part_of, picture_twice

Rule = Callable[[str, tuple[int, ...]], bool]
"""Whether a parameter of this name, whose weight has this shape, belongs to a subset."""


def _rule(component: str, part: str = "", dims: int | None = None) -> Rule:
    """Return the rule of components and keys that match these patterns, and weights of so many dimensions."""
    pattern = re.compile(rf"(?:{component})\.{part}")

    def rule(name: str, shape: tuple[int, ...]) -> bool:
        return pattern.match(name) is not None and (dims is None or len(shape) == dims)

    return rule


def _both(one: Rule, other: Rule) -> Rule:
    return lambda name, shape: one(name, shape) and other(name, shape)


def _kind(dims: int) -> Rule:
    return lambda _, shape: len(shape) == dims


_CROSS: Final = r".*\.(?:attn2\.to_(?:q|k|v|out\.0)|add_[kv]_proj)\.weight$"
_CROSS_KV: Final = r".*\.(?:attn2\.to_[kv]|add_[kv]_proj)\.weight$"

COMPONENTS: Final[Mapping[str, str]] = {
    "unet": "unet",
    "transformer": r"transformer(?:_\d+)?",
    "text": r"text_encoder(?:_\d+)?",
    "text-1": "text_encoder",
    "text-2": "text_encoder_2",
    "text-3": "text_encoder_3",
}
"""The components that a word stands for, as a pattern; that of a component without a word of its own stands for it."""

PARTS: Final[Mapping[str, Rule]] = {
    "attn": lambda name, _: part_of(name).attn,
    "ca": lambda name, _: part_of(name).ca,
    "ca-kv": lambda name, _: part_of(name).ca and part_of(name).kv,
    "kv": lambda name, _: part_of(name).kv,
    "mlp": lambda name, _: part_of(name).mlp,
    "experts": lambda name, _: EXPERT.search(name) is not None,
    "1d": _kind(1),
    "2d": _kind(2),
    "4d": _kind(4),
    "conv": lambda _, shape: len(shape) > 2,
}
"""Parts of all components: attention, cross-attention, keys and values of both, feed-forward, its experts, kinds."""

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

SUBSETS: Final[Mapping[str, Rule]] = {
    **{f"{word}-{part}": _both(_rule(its), rule) for word, its in COMPONENTS.items() for part, rule in PARTS.items()},
    **{word: _rule(its) for word, its in COMPONENTS.items()},
    **PARTS,
    **PAPER,
}
"""All named subsets, by the names that commands take; those of components by their own names come beside."""

SPELLED: Final = (
    f"a component ({', '.join(COMPONENTS)}), a part ({', '.join(PARTS)}), both, as in unet-ca-kv, "
    "up, down, mid, up-ca, down-ca, mid-ca, down.1, up.1, or block.3"
)
"""How subsets are named, for errors."""

_LEVEL: Final = re.compile(r"(up|down)\.([0-9]{1,2})")
_BLOCK: Final = re.compile(r"(?:(?P<component>[\w-]+)-)?block\.(?P<first>[0-9]{1,3})(?:-(?P<last>[0-9]{1,3}))?")
_SECOND: Final = re.compile(r"(?:[\w-]+-)?ca(?:-kv)?")


def subset(name: str, names: Collection[str] = ()) -> Rule | None:
    """Return the rule of a named subset, or of blocks, in any case; None if unknown.

    Args:
        name: a name of `SUBSETS`, or with the name of a component in `names` in place of the word for it; `down.1` or
            `up.1` of a UNet; `block.3` or `block.3-5`, with a component in front or without.
        names: the parameters at hand.
    """
    name = name.lower()
    if match := _LEVEL.fullmatch(name):
        return _rule("unet", rf"{match[1]}_blocks\.{match[2]}\.")
    if match := _BLOCK.fullmatch(name):
        return _blocks(match["component"], int(match["first"]), int(match["last"] or match["first"]), names)
    rule = SUBSETS.get(name) or _of_component(name, names)
    if rule is None or name in PAPER or not _SECOND.fullmatch(name):
        return rule
    twice = picture_twice(names)
    return _both(rule, lambda each, _: ".attn2." not in each or each.partition(".attn2.")[0] not in twice)


def _of_component(name: str, names: Collection[str]) -> Rule | None:
    """Return the rule of what is at hand of components by this name of theirs, or of a part of them."""
    word, dash, part = name.partition("-")
    worded = {*COMPONENTS.values()}
    own = {component for component in (each.partition(".")[0] for each in names) if component.lower() == word} - worded
    if not own or (dash and part not in PARTS):
        return None
    rule = _rule("|".join(sorted(own)))
    return _both(rule, PARTS[part]) if dash else rule


def _blocks(component: str | None, first: int, last: int, names: Collection[str]) -> Rule | None:
    """Return the rule of the blocks of these numbers, of one component or of all."""
    whole = subset(component, names) if component else lambda *_: True

    def within(name: str, _: tuple[int, ...]) -> bool:
        number = part_of(name).block
        return number is not None and first <= number <= last

    return None if whole is None else _both(whole, within)
