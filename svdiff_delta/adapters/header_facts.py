"""Read what a header says, fast: names, formats, shapes and metadata, without a check of each entry's place.

A header that is not plainly whole is read again by the container's own rules, which say what is wrong with it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from svdiff_delta._util.reading import regular_file
from svdiff_delta.errors import DeltaError, HeaderError, InputError
from svdiff_delta.format.container import read_header, read_prefix
from svdiff_delta.format.entry import Header

Shape = tuple[int, ...]


class Tensor(msgspec.Struct, gc=False):
    """A tensor as a header has it: number format, shape, first byte and the one after the last."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data_offsets: tuple[int, int] = (0, 0)


class _Head(msgspec.Struct, rename={"metadata": "__metadata__"}):
    metadata: dict[str, str] = {}


_TENSORS: Final = msgspec.json.Decoder(dict[str, Tensor])
_HEAD: Final = msgspec.json.Decoder(_Head)


@dataclass(frozen=True)
class Facts:
    """What the header of a safetensors file says.

    Attributes:
        metadata: its strings.
        tensors: its tensors by key.
        size: the bytes of the file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    size: int


def read_facts(path: Path) -> Facts:
    """Return what the header of a file says.

    Raises:
        InputError: it cannot be read.
        HeaderError: it is broken, or no safetensors file; the message names it.
    """
    with regular_file(path, InputError) as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = read_prefix(stream, size)
    try:
        return facts_of(prefix, size)
    except HeaderError as error:
        raise HeaderError(f"{path}: {error.message}", fix=error.fix) from None


def facts_of(prefix: bytes, size: int) -> Facts:
    """Return what the header in the first bytes of a file says.

    Args:
        prefix: the bytes, up to the end of the header at least.
        size: of the whole file.

    Raises:
        HeaderError: as `read_header`.
    """
    found = _fast(prefix, size)
    if found is not None:
        return found
    header: Header = read_header(prefix, size, foreign=True)
    entries = header.entries.items()
    tensors = {key: Tensor(entry.dtype, entry.shape, (entry.start, entry.stop)) for key, entry in entries}
    return Facts(header.metadata, tensors, size)


def _fast(prefix: bytes, size: int) -> Facts | None:
    """Return what a header says whose tensors fill the file exactly; None if it needs a closer look."""
    if len(prefix) < 10 or prefix[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", prefix[:8])
    text = memoryview(prefix)[8 : 8 + length]
    if len(text) != length:
        return None
    try:
        metadata, tensors = _HEAD.decode(text).metadata, _TENSORS.decode(text)
    except (msgspec.MsgspecError, DeltaError, UnicodeDecodeError):
        return None
    tensors.pop("__metadata__", None)
    left, last = size - 8 - length, 0
    for tensor in tensors.values():
        start, stop = tensor.data_offsets
        left -= stop - start
        last = max(last, stop)
        if not tensor.dtype or start > stop:
            return None
    return Facts(metadata, tensors, size) if left == 0 and last == size - 8 - length else None
