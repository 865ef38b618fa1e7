"""Tensors as pages of their file agree with the safetensors library."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.bytes import container, entry

from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES, map_tensor
from svdiff_delta.format.container import read_header
from svdiff_delta.format.entry import ITEM_SIZE


def read_all(path: Path) -> dict[str, torch.Tensor]:
    header = read_header(path.read_bytes(), path.stat().st_size)
    return {key: map_tensor(path, header.data, item) for key, item in header.entries.items()}


def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    bits = torch.arange(96, dtype=torch.uint8).reshape(3, 32)
    bits[1] = bits[1] % 2
    tensors = {name: bits.clone().view(dtype) for name, dtype in TORCH_DTYPES.items() if name != "BOOL"}
    tensors |= {"BOOL": bits % 2 == 1, "nothing": torch.empty(0, 4), "one": torch.tensor(2.5)}
    safetensors.torch.save_file(tensors, tmp_path / "x")
    found = read_all(tmp_path / "x")
    assert ITEM_SIZE.keys() == TORCH_DTYPES.keys()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_tensors_beyond_the_first_pages_are_found(tmp_path: Path) -> None:
    tensors = {f"w{index}": torch.full((3, 1000), float(index)) for index in range(9)}
    safetensors.torch.save_file(tensors, tmp_path / "x")
    assert all(torch.equal(found, tensors[name]) for name, found in read_all(tmp_path / "x").items())


@pytest.mark.parametrize("spaces", range(8))
def test_a_file_that_does_not_align_its_tensors_is_read(tmp_path: Path, spaces: int) -> None:
    values = torch.arange(3.0)
    raw = container({"w": entry(3)}, values.numpy().tobytes())
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length] + b" " * spaces
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    assert torch.equal(read_all(tmp_path / "x")["w"], values)


def test_what_is_written_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(4)}, tmp_path / "x")
    read_all(tmp_path / "x")["w"] += 1
    assert read_all(tmp_path / "x")["w"].tolist() == [0, 0, 0, 0]


def test_a_file_that_became_shorter_is_an_error_and_no_crash(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(4000)}, tmp_path / "x")
    header = read_header((tmp_path / "x").read_bytes(), (tmp_path / "x").stat().st_size)
    with (tmp_path / "x").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(ValueError, match="greater than file size"):
        map_tensor(tmp_path / "x", header.data, header.entries["w"])
