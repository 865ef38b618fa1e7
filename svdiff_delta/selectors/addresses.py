"""Addresses of a UNet's cross-attention blocks, as the style-mixing experiment has them (paper, section 4.4, Fig. 10).

An address (resolution, way, index) names one block: `(16,down,1)` is the second block on the way down where latents are
16 wide. Resolution is the sample size halved at each depth; the middle block is the last on the way down. A range
`A-B` takes the blocks from A to B in the order of the forward pass, both included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from svdiff_delta.errors import SelectionError

_ADDRESS = r"\( *([0-9]{1,9}) *, *'?(down|up)'? *, *([0-9]{1,9}) *\)"
_RANGE: Final = re.compile(rf"{_ADDRESS}(?: *- *{_ADDRESS})?")
_LEVEL: Final = re.compile(r"unet\.(down|up)_blocks\.(\d{1,3})\.(?:attentions\.(\d{1,3})\.)?")
_MIDDLE: Final = re.compile(r"unet\.mid_block\.(?:attentions\.(\d{1,3})\.)?")


@dataclass(frozen=True)
class Layout:
    """How many cross-attention blocks a UNet has: on each level of the way down, in the middle, on each of the way up.

    Level i of the way down is `down_blocks.i`, that of the way up `up_blocks.i`; there are as many of both.
    """

    down: tuple[int, ...]
    mid: int
    up: tuple[int, ...]

    def blocks(self) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """Yield depth, way and name prefixes of each block, in the order of the forward pass."""
        for level, count in enumerate(self.down):
            for index in range(count):
                yield level, "down", _prefixes("down", level, index)
        resnets = ("unet.mid_block.resnets.0.", "unet.mid_block.resnets.1.")
        for index in range(self.mid):
            yield len(self.down) - 1, "down", (f"unet.mid_block.attentions.{index}.", *resnets)
        for level, count in enumerate(self.up):
            for index in range(count):
                yield len(self.up) - 1 - level, "up", _prefixes("up", level, index)


def _prefixes(way: str, level: int, index: int) -> tuple[str, ...]:
    """Return where the parameters of a block are: its attention, and the resnet just before it."""
    return tuple(f"unet.{way}_blocks.{level}.{part}.{index}." for part in ("attentions", "resnets"))


def find_layout(names: Iterable[str]) -> Layout | None:
    """Return the layout of the UNet of which these are the parameter names; None if they are not of a whole UNet.

    They are of a whole one if they are of its middle and of as many levels on the way down as on the way up.
    """
    ways: dict[str, dict[int, int]] = {"down": {}, "up": {}}
    middle: int | None = None
    for name in names:
        if match := _LEVEL.match(name):
            counts, level = ways[match[1]], int(match[2])
            counts[level] = max(counts.get(level, 0), int(match[3]) + 1 if match[3] else 0)
        elif match := _MIDDLE.match(name):
            middle = max(middle or 0, int(match[1]) + 1 if match[1] else 0)
    down, up = (tuple(counts[level] for level in sorted(counts)) for counts in ways.values())
    whole = all(set(counts) == set(range(len(down))) for counts in ways.values())
    return Layout(down, middle, up) if down and whole and middle is not None else None


def is_address(selector: str) -> bool:
    """Tell whether a selector is written as an address or a range of addresses."""
    return _RANGE.fullmatch(selector) is not None


def addresses(layout: Layout, sample_size: int) -> Mapping[str, tuple[str, ...]]:
    """Return by address the name prefixes of each cross-attention block, in the order of the forward pass.

    Args:
        layout: of the UNet.
        sample_size: the width of the latents that the UNet was made for (64 in SD 1.5).
    """
    found: dict[str, tuple[str, ...]] = {}
    counts: dict[tuple[int, str], int] = {}
    for depth, way, prefixes in layout.blocks():
        key = sample_size >> depth, way
        index = counts.get(key, 0)
        counts[key] = index + 1
        found[f"({key[0]},{way},{index})"] = prefixes
    return found


def select_addresses(names: Iterable[str], selector: str, sample_size: int, layout: Layout | None = None) -> set[str]:
    """Return the parameters of the block, or of the range of blocks, that a selector names.

    Args:
        names: parameter names.
        selector: an address, or a range of them.
        sample_size: the width of the latents that the UNet was made for.
        layout: of the UNet; what `find_layout` makes of the names if not given.

    Raises:
        SelectionError: there is no such block, the layout is not known, or the range runs backwards.
    """
    names = list(names)
    match = _RANGE.fullmatch(selector)
    if match is None:
        raise SelectionError(
            f"{selector!r}: is not an address", fix="write it as (16,down,1) or (16,down,1)-(8,down,0)"
        )
    layout = layout or find_layout(names)
    if layout is None:
        raise SelectionError(
            f"{selector}: the file does not say where its UNet has cross-attention, and holds only a part of it",
            fix="slice the whole file, or use names such as unet.mid_block.*",
        )
    known = addresses(layout, sample_size)
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
    prefixes = tuple(prefix for address in order[first : last + 1] for prefix in known[address])
    return {name for name in names if name.startswith(prefixes)}
