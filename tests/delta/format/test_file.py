"""Delta files: read strictly, written canonically."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bytes import NAME, VALUES, container, delta_file, document, entry
from support.deltas import CONV, METADATA, NORM, QUERY, TEXT, random_delta, random_values, saved
from support.files import contents, listing

from svdiff_delta.errors import (
    DeltaError,
    FormatError,
    HeaderError,
    InputError,
    MetadataError,
    OutputError,
    TensorError,
    VersionError,
)
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.file import dumps, file_digest, loads, save
from svdiff_delta.format.lineage import Lineage, Record
from svdiff_delta.io import load


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "dog.safetensors").write_bytes(delta_file())
    delta = load(tmp_path / "dog.safetensors")
    assert {name: value.tolist() for name, value in delta.items()} == {NAME: list(VALUES)}


def test_a_path_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "dog.safetensors").write_bytes(delta_file())
    assert len(load(str(tmp_path / "dog.safetensors"))) == 1


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(random_delta(1, title="Dog"), tmp_path / "dog.safetensors")
    delta = load(tmp_path / "dog.safetensors")
    expected = random_values(METADATA.parameters, 1)
    assert delta.metadata == METADATA.with_title("Dog")
    assert {name: value.tolist() for name, value in delta.items()} == {n: v.tolist() for n, v in expected.items()}


def test_the_safetensors_library_reads_what_is_saved(tmp_path: Path) -> None:
    save(random_delta(1, dtypes={NORM: "F16"}), tmp_path / "dog.safetensors")
    read = safetensors.numpy.load_file(tmp_path / "dog.safetensors")
    expected = random_values(METADATA.parameters, 1)
    expected[NORM] = expected[NORM].astype(np.float16)
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype
        assert np.array_equal(read[name], value)


def with_tensors(tensors: dict[str, Any], body: bytes) -> bytes:
    """A file with the usual document and these tensors."""
    return container({"__metadata__": {"svdiff": json.dumps(document())}, **tensors}, body)


@pytest.mark.parametrize(
    ("dtype", "item", "body"),
    [
        pytest.param("F32", 4, struct.pack("<3f", *VALUES), id="F32"),
        pytest.param("F16", 2, struct.pack("<3e", *VALUES), id="F16"),
        pytest.param("BF16", 2, b"".join(struct.pack("<f", value)[2:] for value in VALUES), id="BF16"),
    ],
)
def test_every_dtype_is_read(dtype: str, item: int, body: bytes) -> None:
    delta = loads(with_tensors({NAME: entry(3, dtype=dtype, item=item)}, body))
    assert delta[NAME].tolist() == list(VALUES)
    assert delta.dtype_of(NAME) == dtype


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_dtype_survives_loading_and_saving(dtype: Dtype) -> None:
    once = dumps(random_delta(1), dtype=dtype)
    assert dumps(loads(once)) == once


def test_a_file_that_is_loaded_and_saved_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    metadata = replace(
        METADATA,
        lineage=Lineage(Record("scale", {"factor": 1e17}, ("a" * 64,))),
        training={"steps": 500},
        modelspec={"title": "Dog"},
        extra={"added later": [1, 2.5, None]},
        foreign={"format": "pt"},
    )
    saved(random_delta(1, metadata, dtypes={NORM: "BF16", CONV: "F16"}), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_wide_items_come_first_so_that_all_are_aligned() -> None:
    raw = dumps(random_delta(1, dtypes={TEXT: "F16", CONV: "BF16", NORM: "F32", QUERY: "F32"}))
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    starts = {name: fields["data_offsets"][0] for name, fields in header.items() if name != "__metadata__"}
    assert sorted(starts, key=starts.__getitem__) == [NORM, QUERY, TEXT, CONV]
    assert length % 8 == 0
    assert [starts[NORM] % 4, starts[QUERY] % 4, starts[TEXT] % 2, starts[CONV] % 2] == [0, 0, 0, 0]


def test_another_dtype_rounds_every_tensor_once() -> None:
    delta = loads(dumps(random_delta(1), dtype="F16"))
    for name, value in random_values(METADATA.parameters, 1).items():
        assert np.array_equal(delta[name], value.astype(np.float16).astype(np.float32))


def test_a_value_beyond_the_dtype_is_refused_and_nothing_written(tmp_path: Path) -> None:
    large = Delta({name: value * 1e6 for name, value in random_delta(1).items()}, METADATA)
    with pytest.raises(TensorError, match="F16 ends at 65504: use a wider `dtype`"):
        save(large, tmp_path / "dog.safetensors", dtype="F16")
    assert listing(tmp_path) == []


def test_an_existing_file_is_not_overwritten_unless_told_so(tmp_path: Path) -> None:
    (tmp_path / "dog.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        save(random_delta(1), tmp_path / "dog.safetensors")
    assert contents(tmp_path) == {"dog.safetensors": b"old"}


def test_an_existing_file_is_overwritten_when_told_so(tmp_path: Path) -> None:
    (tmp_path / "dog.safetensors").write_bytes(b"old")
    save(random_delta(1), tmp_path / "dog.safetensors", overwrite=True)
    assert contents(tmp_path) == {"dog.safetensors": dumps(random_delta(1))}


def test_a_delta_outlives_the_file_it_was_loaded_from(tmp_path: Path) -> None:
    old = load(saved(random_delta(1), tmp_path / "dog.safetensors"))
    save(random_delta(2), tmp_path / "dog.safetensors", overwrite=True)
    assert np.array_equal(old[CONV], random_values(METADATA.parameters, 1)[CONV])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}/dog.safetensors: there is no such file$"):
        load(tmp_path / "dog.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}: could not be read \\(Is a directory\\)$"):
        load(tmp_path)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be read \(File name too long\)$"):
        load(tmp_path / ("x" * 300))


BROKEN: dict[str, tuple[bytes, type[FormatError], str]] = {
    "an empty file": (b"", HeaderError, "has 0 bytes"),
    "a broken container": (delta_file()[:-1], HeaderError, "the file is cut off"),
    "a file of another kind": (container({NAME: entry(3)}, bytes(12)), MetadataError, "not a delta file"),
    "a broken document": (delta_file(document(base={})), MetadataError, r"base\.components: is missing"),
    "a later version": (delta_file(document(version=2)), VersionError, "format version 2"),
    "no tensor": (with_tensors({}, b""), MetadataError, "it has no tensor"),
    "a tensor without a column": (
        with_tensors({NAME: entry(3), "unet.a": entry(1, start=12)}, bytes(16)),
        MetadataError,
        r"parameters\.shapes: must have one entry per tensor \(2\), has 1",
    ),
    "a length that does not fit the weight": (
        with_tensors({NAME: entry(4)}, bytes(16)),
        TensorError,
        rf"{NAME}: δ has shape \[4\], its weight needs \[3\]",
    ),
    "a matrix instead of a vector": (
        with_tensors({NAME: entry(3, 1)}, bytes(12)),
        TensorError,
        r"δ has shape \[3, 1\]",
    ),
    "a dtype that deltas have not": (
        with_tensors({NAME: entry(3, dtype="F64", item=8)}, bytes(24)),
        TensorError,
        f"{NAME}: stored as F64; a delta file stores F32, F16, BF16",
    ),
}


@pytest.mark.parametrize(("raw", "error", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, raw: bytes, error: type[FormatError], reason: str) -> None:
    path = tmp_path / "dog.safetensors"
    path.write_bytes(raw)
    with pytest.raises(error, match=f"^{path}: .*{reason}"):
        load(path)


def test_a_file_cut_off_at_any_length_is_refused() -> None:
    raw = dumps(random_delta(1, title="Dog"))
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            loads(raw[:length])


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80, 0x20])
def test_a_file_with_any_byte_damaged_is_refused_or_still_a_valid_delta(mask: int) -> None:
    raw = dumps(random_delta(1, title="Dog", dtypes={NORM: "F16", CONV: "BF16"}))
    for index in range(len(raw)):
        damaged = bytearray(raw)
        damaged[index] ^= mask
        try:
            delta = loads(bytes(damaged))
            again = Delta(dict(delta), delta.metadata, dtypes=delta.dtypes)
        except FormatError:
            continue
        assert dumps(loads(dumps(again))) == dumps(again)


def test_a_nan_in_the_file_is_refused_by_the_names_of_file_and_parameter(tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    path.write_bytes(delta_file(body=struct.pack("<3f", 0, float("nan"), 0)))
    delta = load(path)
    with pytest.raises(TensorError, match=f"^{path}: {NAME}: δ holds NaN or infinity"):
        delta[NAME]


def test_metadata_that_cannot_be_written_leave_no_file(tmp_path: Path) -> None:
    delta = random_delta(1, replace(METADATA, training={"loss": float("inf")}))
    with pytest.raises(DeltaError, match="cannot be written as JSON"):
        save(delta, tmp_path / "dog.safetensors")
    assert listing(tmp_path) == []


def test_a_file_is_identified_by_its_sha256_and_its_tensors_by_theirs(tmp_path: Path) -> None:
    raw = delta_file(**{"modelspec.title": "Dog"})
    (tmp_path / "dog.safetensors").write_bytes(raw)
    sha256, source = file_digest(load(tmp_path / "dog.safetensors"))
    assert sha256 == hashlib.sha256(raw).hexdigest()
    assert source.digest == hashlib.sha256(struct.pack("<3f", *VALUES)).hexdigest()
    assert source.title == "Dog"


def test_a_delta_in_memory_is_identified_by_the_file_it_would_be(tmp_path: Path) -> None:
    delta = random_delta(1, title="Dog")
    save(delta, tmp_path / "dog.safetensors")
    assert file_digest(delta) == file_digest(load(tmp_path / "dog.safetensors"))
    assert file_digest(delta)[0] == hashlib.sha256((tmp_path / "dog.safetensors").read_bytes()).hexdigest()
