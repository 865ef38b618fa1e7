"""Blocks of a model by the names of its parameters, each with the selector that names it and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_ROW: Final = re.compile(r"(.*?\.(?:mid_block|(?:\w*blocks|layers|layer|h)\.\d+))\.")
"""The first row of blocks in a name, with the block's number."""

_TOP: Final = re.compile(r"([^.]+\.(?:(?:\w*model|encoder|decoder|transformer|backbone)\.)*[^.]+)\.")
"""The first module in a name that is more than a wrapper around rows of blocks."""

_LEVEL: Final = re.compile(r"unet\.(?:(down|up)_blocks\.(\d{1,2})|(mid)_block)")
_NUMBER: Final = re.compile(r"\d+|\D+")

_WAYS: Final = {"conv_in": 0, "time_embedding": 1, "down_blocks": 2, "mid_block": 3, "up_blocks": 4}
"""Where parts of a UNet stand in the forward pass; what is not named comes after them, such as conv_norm_out."""

_FIRST: Final = re.compile(r"embed|_in$|_in\b|embedder|embeddings")
"""Parts of other models that come before their blocks."""


@dataclass(frozen=True)
class Block:
    """A block of a component.

    Attributes:
        component: such as `unet`.
        label: what it is called within its component, such as `down.1`, `mid`, `layers.3` or `conv_in`.
        selector: what names its parameters (spec, section 7.5).
    """

    component: str
    label: str
    selector: str


@lru_cache(maxsize=1 << 16)
def block_at(name: str) -> Block:
    """Return the block that a parameter belongs to; of what stands in no row of blocks, the module at the top."""
    component = name.partition(".")[0]
    found = _ROW.match(name) or _TOP.match(name)
    prefix = found[1] if found else name
    if level := _LEVEL.fullmatch(prefix):
        label = level[3] or f"{level[1]}.{level[2]}"
        return Block(component, label, label)
    return Block(component, prefix.removeprefix(f"{component}."), f"{prefix}.*")


def blocks_of(names: Iterable[str]) -> dict[Block, list[str]]:
    """Return the parameters of each block, in the order of the forward pass as far as names tell."""
    members: dict[Block, list[str]] = {}
    for name in names:
        members.setdefault(block_at(name), []).append(name)
    return {block: members[block] for block in sorted(members, key=_order)}


def _order(block: Block) -> tuple[str, int, tuple[tuple[int, str], ...]]:
    """Return what sorts blocks: text encoders before denoisers is the order of their names already."""
    head = block.selector.removesuffix(".*").removeprefix(f"{block.component}.").partition(".")[0]
    if block.component == "unet":
        place = {"down": 2, "mid": 3, "up": 4}.get(head, _WAYS.get(head, 5))
    else:
        place = 0 if _FIRST.search(head) else 1 if "." in block.label else 2
    parts = tuple((int(part), "") if part.isdigit() else (-1, part) for part in _NUMBER.findall(block.label))
    return block.component, place, parts
