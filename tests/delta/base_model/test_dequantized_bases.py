"""Quantized single files as bases: refused by their scheme, and read as their library reads them when asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import base_delta
from support.originals import COMFY, write
from support.singles import Single, transformer

from svdiff_delta import bake, load, open_base, save, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, MissingExtraError

WAN, IMAGE = "WanTransformer3DModel", "ZImageTransformer2DModel"


def fp8(single: Single, *, scale: str | None = "scale_weight", shape: tuple[int, ...] = ()) -> Path:
    """Write a file's matrices in fp8, with a scale each; return the file."""
    tensors = load_file(single.file)
    for key in [*tensors]:
        if key.endswith(".weight") and tensors[key].ndim == 2:
            largest = tensors[key].abs().max().float() / 448 if scale else torch.tensor(1.0)
            tensors[key] = (tensors[key].float() / largest).to(torch.float8_e4m3fn)
            if scale:
                tensors[key.removesuffix("weight") + scale] = largest.expand(shape).clone()
    if scale == "scale_weight":
        tensors["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, single.file)
    return single.file


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("name", [WAN, IMAGE])
def test_fp8_with_scales_is_refused_and_read_when_asked_for(name: str, scale: str, tmp_path: Path) -> None:
    single = transformer(tmp_path, name)
    file = fp8(single, scale=scale)
    with pytest.raises(BaseError, match="is quantized \\(fp8 with scales\\)") as caught:
        open_base(file, config=single.config)
    assert "dequantize=True" in caught.value.fix
    base = open_base(file, config=single.config, dequantize=True)
    stored = load_file(file)
    key = COMFY + ("blocks.0.self_attn.o.weight" if name == WAN else "layers.0.attention.out.weight")
    own = "blocks.0.attn1.to_out.0.weight" if name == WAN else "layers.0.attention.to_out.0.weight"
    expected = stored[key].double() * stored[key.removesuffix("weight") + scale].double()
    found = base.read(f"transformer.{own}")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())


def test_fp8_without_scales_is_its_own_numbers(tmp_path: Path) -> None:
    single = transformer(tmp_path, IMAGE)
    file = fp8(single, scale=None)
    with pytest.raises(BaseError, match="F8_E4M3"):
        zero_delta(open_base(file, config=single.config), "transformer-attn")
    base = open_base(file, config=single.config, dequantize=True)
    assert torch.equal(
        base.read("transformer.layers.0.attention.to_out.0.weight"),
        load_file(file)[f"{COMFY}layers.0.attention.out.weight"].float(),
    )


def test_scales_that_are_not_understood_are_refused(tmp_path: Path) -> None:
    single = transformer(tmp_path, IMAGE)
    with pytest.raises(BaseError, match=r"has scales of shape \[1, 2\], and only one is understood"):
        open_base(fp8(single, shape=(1, 2)), config=single.config, dequantize=True)


def check_facts(base: Base, config: Path, output: Path, scheme: str, library: str) -> None:
    """A delta of a dequantized base says so, and what is baked of it holds float32 numbers."""
    delta = base_delta(base, "transformer-attn")
    save(delta, output / "delta.safetensors")
    told = load(output / "delta.safetensors").metadata.base.extra["dequantized"]
    assert isinstance(told, dict)
    assert told["scheme"] == scheme
    assert str(told["library"]).startswith(f"{library} ")
    bake(base, [delta], output / "out.safetensors")
    baked = open_base(output / "out.safetensors", config=config)
    for name in base.names():
        assert torch.equal(baked.read(name), base.read(name)) == (name not in delta), name


def test_a_delta_of_a_dequantized_base_says_so_and_bakes_to_float32(tmp_path: Path) -> None:
    single = transformer(tmp_path, IMAGE, dtype=torch.float32)
    base = open_base(fp8(single), config=single.config, dequantize=True)
    check_facts(base, single.config, tmp_path, "fp8 with scales", "torch")


def test_gguf_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingExtraError, match="gguf"):
        open_base(tmp_path / "x.gguf", dequantize=True)


@pytest.mark.parametrize(
    ("beside", "scheme"),
    [
        ("quant_state.bitsandbytes__nf4", "bitsandbytes nf4"),
        ("_weight_qdata", "torchao"),
        ("SCB", "bitsandbytes 8-bit"),
    ],
)
def test_schemes_that_cannot_be_read_are_named(beside: str, scheme: str, tmp_path: Path) -> None:
    single = transformer(tmp_path, WAN)
    tensors = load_file(single.file)
    stem = f"{COMFY}blocks.0.self_attn.o."
    extra = {(f"{stem}weight.{beside}" if "bits" in beside else stem + beside): torch.zeros(4, dtype=torch.uint8)}
    file = write(tmp_path / "q.safetensors", tensors.items(), extra.items())
    for dequantize in (False, True):
        with pytest.raises(BaseError, match=rf"is quantized \({scheme}\)"):
            open_base(file, config=single.config, dequantize=dequantize)


def test_folders_are_not_dequantized(tmp_path: Path) -> None:
    single = transformer(tmp_path, WAN)
    single.models["transformer"].save_pretrained(tmp_path / "folder")
    with pytest.raises(BaseError, match="only single files are dequantized"):
        open_base(tmp_path / "folder", dequantize=True)
