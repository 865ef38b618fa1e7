"""GGUF files as bases, read as their own library dequantizes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.models import base_delta
from support.originals import transformer_file
from support.singles import Single, transformer

from svdiff_delta import bake, load, open_base, save
from svdiff_delta.errors import BaseError

pytestmark = pytest.mark.quantized

WAN, IMAGE = "WanTransformer3DModel", "ZImageTransformer2DModel"


def gguf_file(single: Single, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a transformer as GGUF under the names of its makers; matrices whose rows allow it are packed."""
    path = single.file.with_suffix(".gguf")
    writer = gguf.GGUFWriter(path, "wan")
    type_ = gguf.GGMLQuantizationType[kind]
    for key, value in transformer_file(single.models["transformer"].to(dtype), "").items():
        array = value.float().numpy()
        if key.endswith(".weight") and value.ndim == 2 and value.shape[1] % 32 == 0:
            writer.add_tensor(key, gguf.quants.quantize(array, type_), raw_dtype=type_)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", [WAN, IMAGE])
def test_gguf_is_refused_and_read_as_gguf_dequantizes_it(name: str, kind: str, tmp_path: Path) -> None:
    single = transformer(tmp_path, name, dtype=torch.float32)
    file = gguf_file(single, kind)
    with pytest.raises(BaseError, match="is quantized \\(GGUF\\)") as caught:
        open_base(file)
    assert "dequantize=True" in caught.value.fix
    base = open_base(file, config=single.config, dequantize=True)
    own = "blocks.0.ffn.net.2.weight" if name == WAN else "layers.0.feed_forward.w2.weight"
    key = "blocks.0.ffn.2.weight" if name == WAN else own
    tensor = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == key)
    expected = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert np.array_equal(base.read(f"transformer.{own}").numpy(), expected.reshape(base.shape(f"transformer.{own}")))


def test_a_delta_of_a_gguf_base_says_so_and_bakes_to_float32(tmp_path: Path) -> None:
    single = transformer(tmp_path, IMAGE, dtype=torch.float32)
    base = open_base(gguf_file(single, "Q8_0"), config=single.config, dequantize=True)
    delta = base_delta(base, "transformer-attn")
    save(delta, tmp_path / "delta.safetensors")
    told = load(tmp_path / "delta.safetensors").metadata.base.extra["dequantized"]
    assert isinstance(told, dict)
    assert told["scheme"] == "GGUF"
    assert str(told["library"]).startswith("gguf ")
    bake(base, [delta], tmp_path / "out.safetensors")
    baked = open_base(tmp_path / "out.safetensors", config=single.config)
    for name in base.names():
        assert torch.equal(baked.read(name), base.read(name)) == (name not in delta), name


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + b"\x00" * 40)
    with pytest.raises(BaseError, match="gguf cannot read it"):
        open_base(file, dequantize=True)
