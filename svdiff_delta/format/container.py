"""The safetensors container: a strict check of the header, and canonical header bytes (spec, section 3)."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import IO, Final

from svdiff_delta._text.printable import counted
from svdiff_delta._util.json import JSON, MAX_INTEGER, canonical_json, end_of_object, strict_json
from svdiff_delta._util.limits import DIMENSIONS
from svdiff_delta.errors import HeaderError

from .entry import ITEM_SIZE, Entries, Entry, Header
from .foreign import LFS
from .members import members

FOREIGN_BITS: Final[dict[str, int]] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64,
}  # fmt: skip
"""Bits per element of dtypes that safetensors 0.8 knows beside those: files of other programs may hold them."""

ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}

LARGEST_HEADER: Final = 14_000_000
"""Bytes of a delta's header (spec, rule H2)."""

LARGEST_FOREIGN: Final = 20_000_000
"""Bytes of the header of a base or adapter: 200 for each of 100,000 tensors, where models take some 130."""

LARGEST_METADATA: Final = 6_000_000
"""Bytes of `__metadata__` in either (spec, rule H5)."""

SAFETENSORS: Final = 100_000_000
"""Bytes that the safetensors library itself reads of a header: what claims more is another format."""


def read_header(buffer: bytes | memoryview, size: int, *, foreign: bool = False) -> Header:
    """Check the header of a container of `size` bytes of which `buffer` holds at least the header.

    Args:
        buffer: the bytes.
        size: of the whole file.
        foreign: whether another program wrote it, so that a dtype that is not in the specification's list is let
            through: its tensor has the size that its offsets say.

    Raises:
        HeaderError: too short, not JSON, unknown fields or dtypes, sizes that do not fit, holes or overlaps.
    """
    if bytes(buffer[: len(LFS)]) == LFS:
        raise HeaderError("this is a pointer of Git LFS, not the file itself", fix="fetch the file with `git lfs pull`")
    if size < 8:
        raise HeaderError(f"the file has {size} bytes; a safetensors file has at least 8", fix="fetch the file again")
    (length,) = struct.unpack("<Q", bytes(buffer[:8]))
    _check_length(length, LARGEST_FOREIGN if foreign else LARGEST_HEADER)
    if 8 + length > size:
        raise HeaderError(f"the file is cut off within its header ({size} bytes)", fix="fetch the file again")
    if buffer[8:9] != b"{":
        raise HeaderError("the header does not begin with {: this is not a safetensors file")
    metadata, entries = _parse(bytes(buffer[8 : 8 + length]), foreign)
    position = entries[next(reversed(entries))].stop if entries else 0
    left = size - 8 - length
    if position > left:
        raise HeaderError(
            f"the file is cut off: its tensors need {position} bytes, {left} are there", fix="fetch the file again"
        )
    if position < left:
        raise HeaderError(
            f"{counted(left - position, 'byte')} {'follows' if left - position == 1 else 'follow'} the last tensor"
        )
    return Header(metadata, entries, 8 + length)


def read_prefix(stream: IO[bytes], size: int) -> bytes:
    """Return what `read_header` needs of a file of `size` bytes, from its beginning; of a header too large, its length.

    Raises:
        OSError: it cannot be read.
    """
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    return prefix + stream.read(min(length if length <= LARGEST_FOREIGN else len(LFS), size))


def read_foreign_header(stream: IO[bytes]) -> tuple[Header, os.stat_result]:
    """Return the checked header of an open file that another program may have written, and what the system says of it.

    Raises:
        OSError: it cannot be read.
        HeaderError: as `read_header`.
    """
    about = os.fstat(stream.fileno())
    return read_header(read_prefix(stream, about.st_size), about.st_size, foreign=True), about


def _check_length(length: int, largest: int) -> None:
    if length > SAFETENSORS:
        raise HeaderError(f"this is not a safetensors file (its header would have {length} bytes)")
    if length > largest:
        raise HeaderError(
            f"its header would have {length:,} bytes, and at most {largest:,} are read",
            fix="keep fewer tensors in one file",
        )


_FIRST: Final = b'{"__metadata__":{"'
_SMALL: Final = 1_000_000
SLICE: Final = "keep it in several files: slices of a delta combine"


def _parse(text: bytes, foreign: bool) -> tuple[dict[str, str], Entries]:
    """Return the metadata and the entries of a header.

    Files of one base have the same entries. Where the metadata stand first, as in canonical form, the rest of the
    header is looked up before it is parsed.
    """
    end = end_of_object(text, len(_FIRST) - 2) if text.startswith(_FIRST) and len(text) < _SMALL else None
    if end is not None and text[end : end + 2] == b',"':
        parsed = strict_json(text[:end] + b"}", "the header", HeaderError, fixed=True)
        return _metadata(parsed["__metadata__"]), _known_entries(b"{" + text[end + 1 :], foreign)
    if len(text) >= _SMALL:
        return _large(text, foreign)
    parsed = strict_json(text, "the header", HeaderError, fixed=True)
    return _metadata(parsed.pop("__metadata__", {})), _entries(parsed, foreign)


_WHOLE: Final = rb"(?:0|[1-9][0-9]{0,15}+)"
_DTYPE: Final = rb'"dtype":"(?P<dtype>[A-Z0-9_]++)"'
_SHAPE: Final = rb'"shape":\[(?P<shape>(?:' + _WHOLE + rb"(?:," + _WHOLE + rb"){0,63}+)?+)\]"
_OFFSETS: Final = rb'"data_offsets":\[(?P<start>' + _WHOLE + rb"),(?P<stop>" + _WHOLE + rb")\]"
_USUAL: Final = tuple(
    re.compile(rb"\{" + rb",".join(parts) + rb"\}")
    for parts in ((_OFFSETS, _DTYPE, _SHAPE), (_DTYPE, _SHAPE, _OFFSETS))
)
"""An entry as canonical form and as the safetensors library write it; others are parsed as JSON."""


def _large(text: bytes, foreign: bool) -> tuple[dict[str, str], Entries]:
    """Return the metadata and the entries of a large header, taken one by one."""
    metadata: dict[str, str] = {}
    found: dict[str, Entry] = {}
    for name, value in members(text, "__metadata__", LARGEST_METADATA):
        if name == "__metadata__":
            metadata = _metadata(strict_json(value, "the header", HeaderError, fixed=True))
        else:
            found[name] = _entry(name, _fields(value), foreign)
    return metadata, _ordered(found)


def _fields(text: bytes) -> JSON:
    for pattern in _USUAL:
        if usual := pattern.fullmatch(text):
            dtype, shape, start, stop = usual.group("dtype", "shape", "start", "stop")
            sides = list(map(int, shape.split(b","))) if shape else []
            return {"dtype": dtype.decode(), "shape": sides, "data_offsets": [int(start), int(stop)]}
    return strict_json(text, "the header", HeaderError, fixed=True)


@lru_cache(maxsize=4)
def _known_entries(text: bytes, foreign: bool) -> Entries:
    parsed = strict_json(text, "the header", HeaderError, fixed=True)
    if "__metadata__" in parsed:
        raise HeaderError("the header is not valid JSON (the key '__metadata__' stands twice in one object)")
    return _entries(parsed, foreign)


def _entries(parsed: Mapping[str, JSON], foreign: bool) -> Entries:
    """Return the checked entries in the order of their offsets."""
    return _ordered({name: _entry(name, fields, foreign) for name, fields in parsed.items()})


def _ordered(entries: dict[str, Entry]) -> Entries:
    """Return entries in the order of their offsets: no overlap, no hole."""
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop, item[0])))
    position = 0
    for name, entry in ordered.items():
        if entry.start != position:
            kind = "overlaps its neighbour" if entry.start < position else "leaves a hole before it"
            raise HeaderError(f"{name}: its data {kind} (byte {min(entry.start, position)} of the data section)")
        position = entry.stop
    return MappingProxyType(ordered)


def _metadata(fields: JSON) -> dict[str, str]:
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise HeaderError("`__metadata__` is not an object of strings")
    return fields


def _entry(name: str, fields: JSON, foreign: bool) -> Entry:
    if not isinstance(fields, dict) or fields.keys() != ENTRY_KEYS:
        raise HeaderError(f"{name}: its header entry must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in ITEM_SIZE and not foreign):
        raise HeaderError(f"{name}: unknown dtype {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise HeaderError(f"{name}: shape and data_offsets must be lists of whole numbers below 2^53")
    if foreign and len(shape) > DIMENSIONS:
        raise HeaderError(f"{name}: has {len(shape):,} dimensions, more than {DIMENSIONS}")
    start, stop = offsets
    size = _size(name, shape)
    bits = 8 * ITEM_SIZE[dtype] if dtype in ITEM_SIZE else FOREIGN_BITS.get(dtype)
    if bits is None and start > stop:
        raise HeaderError(f"{name}: its data ends before it begins")
    if bits is not None and 8 * (stop - start) != size * bits:
        needed = size * bits // 8 if size * bits % 8 == 0 else size * bits / 8
        raise HeaderError(f"{name}: shape {shape} in {dtype} needs {needed} bytes, the header gives {stop - start}")
    return Entry(dtype, tuple(shape), start, stop)


def _naturals(values: JSON) -> bool:
    if not isinstance(values, list):
        return False
    for value in values:  # noqa: SIM110 - a generator would take most of the time of reading a header
        if type(value) is not int or not 0 <= value <= MAX_INTEGER:
            return False
    return True


def _size(name: str, shape: list[int]) -> int:
    """Return the number of elements; the product of many large sides is given up early, not computed."""
    if len(shape) <= 8:
        return prod(shape)
    if 0 in shape:
        return 0
    size = 1
    for side in shape:
        size *= side
        if size > MAX_INTEGER:
            raise HeaderError(f"{name}: its shape has 2^53 elements or more")
    return size


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    sizes: Mapping[str, int] = MappingProxyType({}),
    *,
    largest: int = LARGEST_FOREIGN,
) -> bytes:
    """Return length prefix and header for (name, dtype, shape) laid out one after the other in the order given.

    Canonical: RFC 8785 JSON, padded with spaces so that the data section starts at a multiple of 8.

    Args:
        tensors: name, dtype and shape of each.
        metadata: the strings of `__metadata__`.
        sizes: the bytes of tensors by name, where their dtype is not in the specification's list.
        largest: the bytes that a header of this kind of file may have.

    Raises:
        HeaderError: it would have more, or more of metadata than are read.
    """
    header: dict[str, JSON] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        stop = position + (sizes[name] if name in sizes else prod(shape) * ITEM_SIZE[dtype])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = canonical_json(header)
    text += b" " * (-len(text) % 8)
    if len(text) > largest:
        raise HeaderError(f"the header would have {len(text):,} bytes, and at most {largest:,} are read", fix=SLICE)
    if len(text) > LARGEST_METADATA and len(canonical_json(dict(metadata))) > LARGEST_METADATA:
        raise HeaderError(f"the metadata would have more than {LARGEST_METADATA:,} bytes", fix=SLICE)
    return struct.pack("<Q", len(text)) + text
