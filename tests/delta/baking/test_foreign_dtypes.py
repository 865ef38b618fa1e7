"""Bases with tensors in number formats that cannot be shifted: opened, passed on byte for byte, refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from support.bytes import container
from support.checkpoints import WEIGHTS, bert
from support.models import base_delta

from svdiff_delta import bake, build_basis, open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, HeaderError
from svdiff_delta.format.container import FOREIGN_BITS, read_header

QUERY = "encoder.layer.0.attention.self.query.weight"
EXTRA = bytes(range(48))
DTYPES = {**FOREIGN_BITS, "F8_E4M3": 8, "I64": 64, "BOOL": 8, "F3_OF_TOMORROW": 3}


def parts(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """Return the header and the data of a safetensors file, read by json alone."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:]


def with_extra(base: Base, dtype: str, key: str = "extra.scale") -> Base:
    """Return a base with one more tensor of this dtype, or with one in the place of another."""
    header, data = parts(base.path / WEIGHTS)
    header.pop("__metadata__", None)
    if key in header:
        header["old"] = header.pop(key)
    end = len(data)
    header[key] = {
        "dtype": dtype,
        "shape": [len(EXTRA) * 8 // DTYPES[dtype]],
        "data_offsets": [end, end + len(EXTRA)],
    }
    (base.path / WEIGHTS).write_bytes(container({"__metadata__": {"format": "pt"}, **header}, data + EXTRA))
    return open_base(base.path)


def extra_of(path: Path, key: str = "extra.scale") -> tuple[object, bytes]:
    header, data = parts(path)
    start, stop = header[key]["data_offsets"]  # type: ignore[misc]
    return header[key]["dtype"], data[start:stop]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_that_is_no_weight_is_passed_on_byte_for_byte(tmp_path: Path, dtype: str) -> None:
    base = with_extra(bert(tmp_path / "base"), dtype)
    delta = base_delta(base, f"model.{QUERY}", size=0.1)
    bake(base, [delta], tmp_path / "same")
    bake(base, [delta], tmp_path / "half", dtype="BF16")
    for folder in ("same", "half"):
        assert extra_of(tmp_path / folder / WEIGHTS) == (dtype, EXTRA)
    if dtype in FOREIGN_BITS:  # the library itself takes what was written
        with safetensors.safe_open(tmp_path / "same" / WEIGHTS, "pt") as file:
            assert "extra.scale" in file.keys()  # noqa: SIM118
    before, after = base.read(f"model.{QUERY}"), open_base(tmp_path / "same").read(f"model.{QUERY}")
    assert not torch.equal(before, after)


@pytest.mark.parametrize("dtype", ["C64", "F4", "F6_E3M2", "F8_E8M0", "F3_OF_TOMORROW"])
def test_bases_are_built_beside_it(tmp_path: Path, dtype: str) -> None:
    base = with_extra(bert(tmp_path / "base"), dtype)
    assert f"model.{QUERY}" in set(base.names())
    assert build_basis(base, f"model.{QUERY}")


@pytest.mark.parametrize(
    ("dtype", "what"),
    [
        ("C64", "is complex (dtype C64)"),
        ("F4", "is quantized (dtype F4, float4)"),
        ("F6_E2M3", "is quantized (dtype F6_E2M3, float6)"),
        ("F8_E8M0", "is quantized (dtype F8_E8M0, float8)"),
        ("F8_E5M2FNUZ", "is quantized (dtype F8_E5M2FNUZ, float8)"),
        ("F3_OF_TOMORROW", "is not floating-point (dtype F3_OF_TOMORROW)"),
    ],
)
def test_a_weight_in_it_is_refused_by_its_name_where_it_is_to_be_shifted(tmp_path: Path, dtype: str, what: str) -> None:
    base = with_extra(bert(tmp_path / "base"), dtype, QUERY)
    with pytest.raises(BaseError) as refusal:
        build_basis(base, f"model.{QUERY}")
    assert str(refusal.value) == f"model.{QUERY}: {what} and has no singular values to shift: use the unquantized base"


@pytest.mark.parametrize(("dtype", "size"), [("F4", 2), ("C64", 7), ("F6_E2M3", 3)])
def test_a_size_that_does_not_fit_a_known_dtype_is_refused(dtype: str, size: int) -> None:
    raw = container({"w": {"dtype": dtype, "shape": [3], "data_offsets": [0, size]}}, bytes(size))
    with pytest.raises(HeaderError, match=rf"w: shape \[3\] in {dtype} needs"):
        read_header(raw, len(raw), foreign=True)


@pytest.mark.parametrize("dtype", [*FOREIGN_BITS, "F3_OF_TOMORROW"])
def test_the_reader_of_delta_files_stays_strict(dtype: str) -> None:
    raw = container({"w": {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]}})
    assert read_header(raw, len(raw), foreign=True).entries["w"].dtype == dtype
    with pytest.raises(HeaderError, match=f"w: unknown dtype '{dtype}'"):
        read_header(raw, len(raw))


def test_a_tensor_that_ends_before_it_begins_is_refused() -> None:
    raw = container({"w": {"dtype": "X", "shape": [3], "data_offsets": [3, 0]}}, bytes(3))
    with pytest.raises(HeaderError, match="w: its data ends before it begins"):
        read_header(raw, len(raw), foreign=True)
