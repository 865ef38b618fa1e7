"""Addresses of a UNet's cross-attention blocks, as the style-mixing experiment has them (paper, section 4.4, Fig. 10).

An address (resolution, way, index) names one block: `(16,down,1)` is the second block on the way down where latents are
16 wide. Resolution is the sample size halved at each depth; the middle block is the last on the way down. A range
`A-B` takes the blocks from A to B in the order of the forward pass, both included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import SelectionError

_ADDRESS = r"\(\s*(\d+)\s*,\s*'?(down|up)'?\s*,\s*(\d+)\s*\)"
_RANGE: Final = re.compile(rf"{_ADDRESS}(?:\s*-\s*{_ADDRESS})?")
_BLOCK: Final = re.compile(r"unet\.(?:(down|up)_blocks\.(\d+)|(mid)_block)\.attentions\.(\d+)\.")
_LEVEL: Final = re.compile(r"unet\.(?:down|up)_blocks\.(\d+)\.")


@dataclass(frozen=True, order=True)
class Block:
    """One cross-attention block: its place in the forward pass, and where its parameters are.

    Attributes:
        place: sorts by the forward pass: way (0 down, 1 middle, 2 up), level, index.
        depth: how often latents were halved.
        prefixes: its attention, and the resnets that go with it: the one just before it, and both of the middle block.
    """

    place: tuple[int, int, int]
    depth: int
    prefixes: tuple[str, ...]


def is_address(selector: str) -> bool:
    """Tell whether a selector is written as an address or a range of addresses."""
    return _RANGE.fullmatch(selector) is not None


def blocks(names: Iterable[str]) -> list[Block]:
    """Return the cross-attention blocks among parameter names, in the order of the forward pass."""
    names = list(names)
    levels = 1 + max((int(match[1]) for name in names if (match := _LEVEL.match(name))), default=-1)
    found = set()
    for match in filter(None, map(_BLOCK.match, names)):
        index = int(match[4])
        if match[3]:
            resnets = ("unet.mid_block.resnets.0.", "unet.mid_block.resnets.1.")
            found.add(Block((1, 0, index), levels - 1, (f"unet.mid_block.attentions.{index}.", *resnets)))
            continue
        way, level = match[1], int(match[2])
        depth = level if way == "down" else levels - 1 - level
        parts = tuple(f"unet.{way}_blocks.{level}.{part}.{index}." for part in ("attentions", "resnets"))
        found.add(Block((0 if way == "down" else 2, level, index), depth, parts))
    return sorted(found)


def addresses(names: Iterable[str], sample_size: int) -> Mapping[str, Block]:
    """Return the blocks among parameter names by address, in the order of the forward pass.

    Args:
        names: parameter names.
        sample_size: the width of the latents that the UNet was made for (64 in SD 1.5).
    """
    found: dict[str, Block] = {}
    counts: dict[tuple[int, str], int] = {}
    for block in blocks(names):
        key = sample_size >> block.depth, "up" if block.place[0] == 2 else "down"
        index = counts.get(key, 0)
        counts[key] = index + 1
        found[f"({key[0]},{key[1]},{index})"] = block
    return found


def select_addresses(names: Iterable[str], selector: str, sample_size: int) -> set[str]:
    """Return the parameters of the block, or of the range of blocks, that a selector names.

    Raises:
        SelectionError: there is no such block, or the range runs backwards.
    """
    names = list(names)
    match = _RANGE.fullmatch(selector)
    known = addresses(names, sample_size)
    if match is None:
        raise SelectionError(
            f"{selector!r}: is not an address", fix="write it as (16,down,1) or (16,down,1)-(8,down,0)"
        )
    ends = [f"({int(match[1])},{match[2]},{int(match[3])})"]
    ends.append(f"({int(match[4])},{match[5]},{int(match[6])})" if match[4] else ends[0])
    for end in ends:
        if end not in known:
            raise SelectionError(
                f"{end}: there is no such cross-attention block at sample size {sample_size}",
                fix=f"there are {' '.join(known) or 'none'}",
            )
    order = list(known)
    first, last = (order.index(end) for end in ends)
    if first > last:
        raise SelectionError(f"{selector!r}: runs backwards", fix=f"write {ends[1]}-{ends[0]}")
    prefixes = tuple(prefix for address in order[first : last + 1] for prefix in known[address].prefixes)
    return {name for name in names if name.startswith(prefixes)}
