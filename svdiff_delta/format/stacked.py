"""Names of weights that are slices of a stacked tensor, one for each expert (spec, section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from .entry import Entry

FEATURE: Final = "stacked"
"""What a file needs that has such a name (spec, section 9)."""

_INDEXED: Final = re.compile(r"(.*)\[([0-9]+)\]")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,11}")


class Slice(NamedTuple):
    """A slice of a stacked tensor: the tensor's key or name, and the number of the slice along its first axis."""

    stack: str
    number: int

    def __str__(self) -> str:
        return f"{self.stack}[{self.number}]"


def slice_of(name: str) -> Slice | None:
    """Return the slice that a key or a parameter's name stands for; None if it is that of a whole tensor."""
    match = _INDEXED.fullmatch(name) if name.endswith("]") else None
    return Slice(match[1], int(match[2])) if match and _INDEX.fullmatch(match[2]) else None


def entry_of(entries: Mapping[str, Entry], key: str) -> Entry | None:
    """Return the header entry of a tensor, or of a slice of a stacked one, which are bytes in a row; None if not there.

    Args:
        entries: the entries of a file, by key.
        key: the tensor's key, or that and an index.
    """
    part = None if key in entries else slice_of(key)
    if part is None:
        return entries.get(key)
    whole = entries.get(part.stack)
    if whole is None or len(whole.shape) != 3 or part.number >= whole.shape[0]:
        return None
    size = (whole.stop - whole.start) // whole.shape[0]
    start = whole.start + part.number * size
    return Entry(whole.dtype, whole.shape[1:], start, start + size)


def misplaced_index(key: str) -> str:
    """Return what is wrong with the index at the end of a state-dict key; empty if nothing is, or it has none."""
    match = _INDEXED.fullmatch(key) if key.endswith("]") else None
    if match is None:
        return ""
    if not _INDEX.fullmatch(match[2]):
        return f"[{match[2][:20]}] is no index: it is written without leading zeros, with at most 12 digits"
    if not match[1]:
        return "an index stands behind the key of a tensor"
    return "it has two indices" if _INDEXED.fullmatch(match[1]) else ""
