"""Define a layer of the original code of a family, and the tables that list them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Swap = Literal["", "always", "continuous"]

_PATH: Final = re.compile(r"[\w.{}]+")


@dataclass(frozen=True)
class Layer:
    """A layer of the original code.

    Attributes:
        name: its name; `{}` stands for the number of a block.
        parts: diffusers' layers whose rows it holds, in order.
        swap: whether it has shift before scale, where diffusers has scale first: "always", or in blocks whose norm
            is a continuous one ("continuous"), which has two rows for each column.
        reads: whether the name is read only, and another one is written.
    """

    name: str
    parts: tuple[str, ...]
    swap: Swap = ""
    reads: bool = False


def layers(names: Mapping[str, str], *, reads: bool = False) -> tuple[Layer, ...]:
    """Return the layers of a table from original names to diffusers', those of one layer with + between them.

    A `~` before a name stands for swapped halves, `?~` for halves that are swapped where the norm is continuous.
    """
    return tuple(_layer(name, said, reads=reads) for name, said in names.items())


def _layer(name: str, said: str, *, reads: bool) -> Layer:
    swap: Swap = "always" if said.startswith("~") else "continuous" if said.startswith("?~") else ""
    return Layer(name, tuple(said.lstrip("?~").split(" + ")), swap, reads)


def within(stems: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return a table below each of some stems (original: diffusers')."""
    return {
        f"{stem}.{name}": _PATH.sub(rf"{own}.\g<0>", said)
        for stem, own in stems.items()
        for name, said in names.items()
    }
