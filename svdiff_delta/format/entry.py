"""The content of a container's header: each tensor's dtype, shape and place, and the text beside them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

ITEM_SIZE: Final[dict[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per element of each dtype the container can hold (spec, section 3.1)."""


class Entry(NamedTuple):
    """One tensor in a container: dtype by its safetensors name, shape, and byte range within the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


Entries = MappingProxyType[str, Entry]
"""Tensors by name, in the order of their offsets."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: `entries` in the file's order of offsets; `data` is where the data section starts."""

    metadata: dict[str, str]
    entries: Entries
    data: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _header, (self.metadata, dict(self.entries), self.data)  # its own view of them cannot be pickled


def _header(metadata: dict[str, str], entries: dict[str, Entry], data: int) -> Header:
    return Header(metadata, MappingProxyType(entries), data)
