"""The safetensors container: files built by hand, and the safetensors library itself, agree with it."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bytes import container, entry

from svdiff_delta.errors import HeaderError
from svdiff_delta.format.container import LARGEST_FOREIGN, LARGEST_HEADER, header_bytes, read_header, read_prefix
from svdiff_delta.format.entry import Entry

TWELVE = bytes(12)


def with_field(**changes: Any) -> bytes:
    """A container of one tensor of three numbers, with some of its fields changed."""
    return container({"w": entry(3) | changes}, TWELVE)


REFUSED = {
    "an empty file": (b"", "has 0 bytes"),
    "seven bytes": (bytes(7), "has 7 bytes"),
    "a PNG picture": (b"\x89PNG\r\n\x1a\n" + TWELVE, "not a safetensors file"),
    "a zip file, as torch.save writes": (b"PK\x03\x04\x00\x00\x08\x08" + TWELVE, "not a safetensors file"),
    "a text": (b"This is a text, not a file of tensors.", "not a safetensors file"),
    "a header of more than 100 MB": (struct.pack("<Q", 100_000_001) + TWELVE, "not a safetensors file"),
    "a header larger than a delta's may be": (
        struct.pack("<Q", LARGEST_HEADER + 1) + TWELVE,
        "its header would have 14,000,001 bytes, and at most 14,000,000 are read",
    ),
    "a header of 14 MB that is not there": (struct.pack("<Q", LARGEST_HEADER) + TWELVE, "cut off within its header"),
    "a header longer than the file": (struct.pack("<Q", 13) + TWELVE, "cut off within its header"),
    "a header of no bytes": (struct.pack("<Q", 0), "header does not begin with {"),
    "a header that begins with a space": (container(b" {}"), "header does not begin with {"),
    "a header that is not JSON": (container(b"{not JSON}"), "header is not valid JSON"),
    "a header that is not UTF-8": (container(b'{"\xff":1}'), "header is not UTF-8"),
    "a header that is a list": (container([]), "header does not begin with {"),
    "a header that is nested too deeply": (
        container(b'{"a":' * 9 + b"1" + b"}" * 9),
        "its header entry must have dtype, shape and data_offsets",
    ),
    "a tensor twice": (
        container(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{}}', b"\0"),
        "the key 'w' stands twice",
    ),
    "metadata twice": (container(b'{"__metadata__":{},"__metadata__":{}}'), "key '__metadata__' stands twice"),
    "metadata that is a list": (container({"__metadata__": []}), "`__metadata__` is not an object of strings"),
    "metadata with a number": (container({"__metadata__": {"a": 1}}), "`__metadata__` is not an object of strings"),
    "an entry that is a list": (container({"w": []}), "w: its header entry must have"),
    "an entry without a dtype": (
        container({"w": {"shape": [3], "data_offsets": [0, 12]}}, TWELVE),
        "w: its header entry must have",
    ),
    "an entry with a field too many": (with_field(scale=1), "w: its header entry must have"),
    "an unknown dtype": (with_field(dtype="F12"), "w: unknown dtype 'F12'"),
    "a dtype that is a list": (with_field(dtype=["F32"]), r"w: unknown dtype \['F32'\]"),
    "a side of 2^53": (with_field(shape=[2**53]), "w: shape and data_offsets must be lists"),
    "more sides than any tensor has": (with_field(shape=[2**53 - 1] * 9), "w: its shape has 2.53 elements or more"),
    "an offset of 2^53": (with_field(data_offsets=[2**53, 2**53 + 12]), "w: shape and data_offsets must be lists"),
    "metadata with a comma behind them, and nothing more": (
        container(b'{"__metadata__":{"a":"b"},}'),
        "the header is not valid JSON",
    ),
    "a shape that is a number": (with_field(shape=3), "w: shape and data_offsets must be lists"),
    "a negative side": (with_field(shape=[-3]), "w: shape and data_offsets must be lists"),
    "a side that is a float": (with_field(shape=[3.0]), "w: shape and data_offsets must be lists"),
    "a side that is a truth value": (with_field(shape=[True, 3]), "w: shape and data_offsets must be lists"),
    "one offset": (with_field(data_offsets=[0]), "w: shape and data_offsets must be lists"),
    "three offsets": (with_field(data_offsets=[0, 6, 12]), "w: shape and data_offsets must be lists"),
    "an offset far beyond the file": (with_field(data_offsets=[0, 2**53 - 1]), "the header gives 9007199254740991"),
    "offsets that are swapped": (with_field(data_offsets=[12, 0]), r"w: shape \[3\] in F32 needs 12 bytes"),
    "a size that does not fit the shape": (with_field(shape=[4]), "needs 16 bytes, the header gives 12"),
    "a size that does not fit the dtype": (with_field(dtype="F16"), "needs 6 bytes, the header gives 12"),
    "a hole before the first tensor": (container({"w": entry(3, start=4)}, bytes(16)), "w: its data leaves a hole"),
    "a hole between two tensors": (
        container({"a": entry(1), "w": entry(1, start=8)}, TWELVE),
        r"w: its data leaves a hole before it \(byte 4",
    ),
    "two tensors that overlap": (
        container({"a": entry(2), "w": entry(2, start=4)}, TWELVE),
        r"w: its data overlaps its neighbour \(byte 4",
    ),
    "two tensors at one place": (container({"a": entry(3), "w": entry(3)}, TWELVE), "w: its data overlaps"),
    "a byte too few": (container({"w": entry(3)}, bytes(11)), "cut off: its tensors need 12 bytes, 11 are there"),
    "a byte too many": (container({"w": entry(3)}, bytes(13)), "1 byte follows the last tensor"),
}


@pytest.mark.parametrize(("raw", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_broken_container_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        read_header(raw, len(raw))


def test_a_container_cut_off_at_any_length_is_refused() -> None:
    raw = container({"__metadata__": {"a": "b"}, "w": entry(3)}, TWELVE)
    for length in range(len(raw)):
        with pytest.raises(HeaderError):
            read_header(raw[:length], length)


def test_a_header_is_read_as_it_was_written() -> None:
    raw = container({"__metadata__": {"a": "b"}, "w": entry(2, 3, dtype="BF16", item=2)}, TWELVE)
    header = read_header(raw, len(raw))
    assert header.metadata == {"a": "b"}
    assert header.entries == {"w": Entry("BF16", (2, 3), 0, 12)}
    assert raw[header.data :] == TWELVE


def test_entries_come_in_the_order_of_their_bytes() -> None:
    raw = container({"a": entry(2, start=4), "b": entry(1)}, TWELVE)
    assert list(read_header(raw, len(raw)).entries) == ["b", "a"]


def test_a_tensor_without_elements_comes_before_the_one_at_its_place() -> None:
    raw = container({"a": entry(3), "z": entry(0)}, TWELVE)
    assert list(read_header(raw, len(raw)).entries) == ["z", "a"]


@pytest.mark.parametrize(
    ("item", "dtypes"),
    [
        (1, ["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"]),
        (2, ["U16", "I16", "F16", "BF16"]),
        (4, ["U32", "I32", "F32"]),
        (8, ["U64", "I64", "F64"]),
    ],
)
def test_every_dtype_has_its_size(item: int, dtypes: list[str]) -> None:
    for dtype in dtypes:
        raw = container({"w": entry(5, dtype=dtype, item=item)}, bytes(5 * item))
        assert read_header(raw, len(raw)).entries["w"].stop == 5 * item


def test_a_container_without_tensors_is_valid() -> None:
    raw = container({})
    assert read_header(raw, len(raw)).entries == {}


def test_a_tensor_without_dimensions_has_one_element() -> None:
    raw = container({"w": entry()}, bytes(4))
    assert read_header(raw, len(raw)).entries["w"].shape == ()


def test_a_header_can_be_checked_before_the_data_is_there() -> None:
    raw = container({"w": entry(3)}, TWELVE)
    assert read_header(raw[:-12], len(raw)) == read_header(raw, len(raw))


def test_what_the_safetensors_library_writes_is_read() -> None:
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    raw = safetensors.numpy.save(tensors, {"key": "value"})
    header = read_header(raw, len(raw))
    assert header.metadata == {"key": "value"}
    for name, tensor in tensors.items():
        found = header.entries[name]
        assert found.shape == tensor.shape
        assert raw[header.data + found.start : header.data + found.stop] == tensor.tobytes()


def test_the_safetensors_library_reads_what_is_written() -> None:
    body = struct.pack("<3f", 1, 2, 3) + struct.pack("<2e", 4, 5)
    read = safetensors.numpy.load(header_bytes([("z", "F32", (3,)), ("a", "F16", (1, 2))], {"key": "value"}) + body)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"a": [[4, 5]], "z": [1, 2, 3]}


def test_header_bytes_are_canonical() -> None:
    text = (
        b'{"__metadata__":{"a":"1","b":"2"},'
        b'"a":{"data_offsets":[12,16],"dtype":"F16","shape":[1,2]},'
        b'"z":{"data_offsets":[0,12],"dtype":"F32","shape":[3]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    written = header_bytes([("z", "F32", (3,)), ("a", "F16", (1, 2))], {"b": "2", "a": "1"})
    assert written == struct.pack("<Q", len(padded)) + padded


@pytest.mark.parametrize("length", range(1, 9))
def test_the_data_section_starts_at_a_multiple_of_8(length: int) -> None:
    assert len(header_bytes([("w" * length, "F32", (1,))], {})) % 8 == 0


def test_no_metadata_is_no_key() -> None:
    assert b"__metadata__" not in header_bytes([("w", "F32", (1,))], {})


# Large headers


def large(count: int, *, usual: bool = True, **more: Any) -> bytes:
    """A container of `count` empty tensors; `usual` writes entries as safetensors does, else in another order."""
    fields = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    fields = fields if usual else dict(sorted(fields.items(), reverse=True))
    names = [f"model.layers.{index}.mlp.experts.down_proj.weight" for index in range(count)]
    return container({**more, **dict.fromkeys(names, fields)})


COUNT = 12_000  # more than a million bytes


@pytest.mark.parametrize("usual", [True, False])
def test_a_large_header_is_read_as_a_small_one(usual: bool) -> None:
    raw = large(COUNT, usual=usual, __metadata__={"a": '{"b}', "c": "\u00e9\\"})
    header = read_header(raw, len(raw))
    assert header.metadata == {"a": '{"b}', "c": "\u00e9\\"}
    assert len(header.entries) == COUNT
    assert set(header.entries.values()) == {Entry("U8", (0,), 0, 0)}


def test_a_large_header_may_have_spaces_escapes_and_any_order() -> None:
    filler = b'"w%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = b",".join(filler % index for index in range(22_000))
    text = b'{ "\\u00e9" :\n{"shape" : [ 3 ], "dtype":"\\u0046\\u0033\\u0032","data_offsets":[0,12 ]}\t,' + text
    raw = container(text + b'  ,"__metadata__" : {"}":"{"}  } ', TWELVE)
    header = read_header(raw, len(raw))
    assert header.metadata == {"}": "{"}
    assert header.entries["\u00e9"] == Entry("F32", (3,), 0, 12)
    assert len(header.entries) == 22_001


LARGE: dict[str, tuple[bytes, str]] = {
    "a tensor twice": (b',"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' * 2, "the key 'w' stands twice"),
    "metadata twice": (b',"__metadata__":{}' * 2, "the key '__metadata__' stands twice"),
    "metadata that are a list": (b',"__metadata__":[]', "`__metadata__` is not an object of strings"),
    "metadata with a number": (b',"__metadata__":{"a":1}', "`__metadata__` is not an object of strings"),
    "metadata that do not end": (
        b',"__metadata__":{"a":"',
        "`__metadata__` has more than 6,000,000 bytes, or",
    ),
    "a list": (b',"w":[[],[]]', "w: its header entry must have"),
    "an object within": (b',"w":{"dtype":{}}', "w: its header entry must have"),
    "an entry without a shape": (b',"w":{"dtype":"U8","data_offsets":[0,0]}', "w: its header entry must have"),
    "a field twice": (b',"w":{"dtype":"U8","dtype":"U8","shape":[0]}', "the key 'dtype' stands twice"),
    "a dtype that is unknown": (b',"w":{"dtype":"F12","shape":[0],"data_offsets":[0,0]}', "w: unknown dtype 'F12'"),
    "a number with a zero before it": (b',"w":{"dtype":"U8","shape":[00],"data_offsets":[0,0]}', "not valid JSON"),
    "a side of 2^53": (
        b',"w":{"dtype":"U8","shape":[9007199254740992],"data_offsets":[0,0]}',
        "lists of whole numbers",
    ),
    "a hole": (b',"w":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}', "leaves a hole"),
    "a comma at the end": (b",", "not valid JSON"),
    "two commas": (b',,"w":1', "not valid JSON"),
    "no comma": (b' "w":1', "not valid JSON"),
    "a key without quotes": (b",w:1", "not valid JSON"),
    "a control character in a key": (b',"a\nb":1', "not valid JSON"),
    "a half of a surrogate pair": (b',"\\ud800":1', "half of a surrogate pair"),
    "a key that is not UTF-8": (b',"\xff":1', "not UTF-8"),
    "something behind it": (b"} {", "not valid JSON"),
}


@pytest.mark.parametrize(("addition", "reason"), LARGE.values(), ids=LARGE)
def test_a_broken_large_header_is_refused(addition: bytes, reason: str) -> None:
    text = large(COUNT)[8:].rstrip()
    raw = container(text[: text.rindex(b"}")] + addition + b"}")
    with pytest.raises(HeaderError, match=reason):
        read_header(raw, len(raw))


MADE_TO_COST: dict[str, Callable[[int], bytes]] = {
    "tensors": lambda size: b",".join(b'"%x":%s' % (i, ENTRY) for i in range(size // 52)),
    "strings": lambda size: b'"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(size // 9)) + b"}",
    "lists": lambda size: b'"a":[' + b"[]," * (size // 3) + b"0]",
    "objects": lambda size: b'"a":{"dtype":[' + b"{}," * (size // 3) + b"0]}",
    "numbers": lambda size: b'"a":{"shape":[' + b"10000," * (size // 6) + b"0]}",
    "braces": lambda size: b'"__metadata__":{"a":"' + b"{" * size + b'"}',
    "spaces": lambda size: b" " * size,
    "backslashes": lambda size: b'"' + b"\\" * size,
}
ENTRY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.parametrize("made_of", MADE_TO_COST)
def test_reading_a_large_header_takes_a_bounded_multiple_of_its_size(made_of: str) -> None:
    text = b"{" + MADE_TO_COST[made_of](1_500_000) + b"}"
    raw = container(text)
    tracemalloc.start()
    with suppress(HeaderError):
        read_header(raw, len(raw), foreign=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < (30 if made_of == "strings" else 10) * len(text)  # of strings there are at most 6 MB


def test_what_is_longer_than_a_header_may_be_is_not_read() -> None:
    for length in (LARGEST_FOREIGN + 1, 2**64 - 1):
        stream = io.BytesIO(struct.pack("<Q", length) + bytes(1000))
        assert len(read_prefix(stream, 2**40)) < 100


def test_a_base_may_have_a_larger_header_than_a_delta() -> None:
    raw = struct.pack("<Q", LARGEST_HEADER + 1) + TWELVE
    with pytest.raises(HeaderError, match="cut off within its header"):
        read_header(raw, len(raw), foreign=True)
    raw = struct.pack("<Q", LARGEST_FOREIGN + 1) + TWELVE
    with pytest.raises(HeaderError, match="at most 20,000,000 are read"):
        read_header(raw, len(raw), foreign=True)


def test_no_header_is_written_that_would_not_be_read() -> None:
    tensors = [("w" * 1000 + str(index), "U8", (0,)) for index in range(14)]
    with pytest.raises(HeaderError, match=r"the header would have 14,\d+ bytes, and at most 14,000 are read") as caught:
        header_bytes(tensors, {}, largest=14_000)
    assert caught.value.fix == "keep it in several files: slices of a delta combine"
    with pytest.raises(HeaderError, match="the metadata would have more than 6,000,000 bytes"):
        header_bytes([], {"a": "x" * 6_000_000})
