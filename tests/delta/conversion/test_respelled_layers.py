"""LoRA becomes LoRA in another dialect: fused layers, other methods, alphas, and what has no place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from svdiff_delta.conversion.respell import respell
from svdiff_delta.errors import InputError

from .test_respell import assert_same, lora, metadata_of, tensors_of

BLOCK = "transformer.single_transformer_blocks.0"
WIDTH = 8
PARTS = {"attn.to_q": WIDTH, "attn.to_k": WIDTH, "attn.to_v": WIDTH, "proj_mlp": 4 * WIDTH}


def update(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    """ΔW of a LoRA by its own formula."""
    down, up = tensors[f"{module}.lora_down.weight"].double(), tensors[f"{module}.lora_up.weight"].double()
    return float(tensors[f"{module}.alpha"]) / down.shape[0] * up @ down


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (0, 2), (3,), (1,)], ids=str)
def test_parts_become_blocks_of_one_layer_and_parts_again(tmp_path: Path, chosen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sizes = [*PARTS.items()]
    tensors: dict[str, Tensor] = {}
    for index in chosen:
        tensors |= lora(f"{BLOCK}.{sizes[index][0]}", sizes[index][1], WIDTH, rank=index + 1, alpha=(index + 1) / 2)
    save_file(tensors, tmp_path / "parts")
    respell(tmp_path / "parts", to="kohya", output=tmp_path / "whole")
    whole = tensors_of(tmp_path / "whole")
    name = "lora_unet_single_blocks_0_linear1"
    assert {*whole} == {f"{name}.{end}" for end in ("alpha", "lora_down.weight", "lora_up.weight")}
    row = 0
    for index, (part, rows) in enumerate(sizes):
        mine = update(whole, name)[row : row + rows]
        expected = update(tensors, f"{BLOCK}.{part}") if index in chosen else torch.zeros(rows, WIDTH).double()
        assert torch.equal(mine, expected)
        row += rows
    respell(tmp_path / "whole", to="lycoris", output=tmp_path / "back")
    assert_same(
        {f"lycoris_{key[12:].partition('.lora_')[0].removesuffix('.alpha').replace('.', '_')}.{end(key)}": value
         for key, value in tensors.items()},
        tensors_of(tmp_path / "back"),
    )  # fmt: skip


def end(key: str) -> str:
    return "alpha" if key.endswith(".alpha") else f"lora_{key.partition('.lora_')[2]}"


def test_a_factor_that_all_parts_share_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(lora(name, 3 * WIDTH, WIDTH), tmp_path / "kohya")
    respell(tmp_path / "kohya", to="diffusers", output=tmp_path / "parts")
    parts = tensors_of(tmp_path / "parts")
    assert {value.shape for key, value in parts.items() if "lora_B" in key} == {(WIDTH, 4)}
    assert len({value.numpy().tobytes() for key, value in parts.items() if "lora_A" in key}) == 1
    respell(tmp_path / "parts", to="comfyui", output=tmp_path / "whole")
    whole = tensors_of(tmp_path / "whole")
    kohya = tensors_of(tmp_path / "kohya")
    assert torch.equal(
        whole["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"], kohya[f"{name}.lora_up.weight"]
    )


def other_methods() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    sides = {"w1_a": (3 * WIDTH, 2), "w1_b": (2, WIDTH), "w2_a": (3 * WIDTH, 2), "w2_b": (2, WIDTH)}
    qkv = "lora_unet_double_blocks_0_img_attn_qkv"
    return {
        "LoHa": {
            **{f"{qkv}.hada_{side}": torch.randn(shape) for side, shape in sides.items()},
            f"{qkv}.alpha": torch.tensor(1.0),
        },
        "LoKr": {f"{qkv}.lokr_w1": torch.randn(6, 2), f"{qkv}.lokr_w2": torch.randn(4, 4)},
        "DoRA": {**lora(qkv, 3 * WIDTH, WIDTH), f"{qkv}.dora_scale": torch.rand(3 * WIDTH, 1)},
        "full": {f"{qkv}.diff": torch.randn(3 * WIDTH, WIDTH)},
    }


@pytest.mark.parametrize("target", ["comfyui", "lycoris"])
@pytest.mark.parametrize("method", ["LoHa", "LoKr", "DoRA", "full"])
def test_other_methods_go_where_they_have_a_place(tmp_path: Path, method: str, target: str) -> None:
    tensors = other_methods()[method]
    save_file(tensors, tmp_path / "kohya")
    respell(tmp_path / "kohya", to=target, output=tmp_path / "there")
    respell(tmp_path / "there", to="kohya", output=tmp_path / "back")
    assert_same(tensors, tensors_of(tmp_path / "back"))
    assert len(tensors_of(tmp_path / "there")) == len(tensors) * (1 if target == "comfyui" else 3)


def test_the_rows_of_lokr_are_those_of_its_product(tmp_path: Path) -> None:
    tensors = other_methods()["LoKr"]
    save_file(tensors, tmp_path / "kohya")
    respell(tmp_path / "kohya", to="lycoris", output=tmp_path / "parts")
    parts = tensors_of(tmp_path / "parts")
    whole = torch.kron(*(value for _, value in sorted(tensors.items())))
    stem = "lycoris_transformer_blocks_0_attn_to_"
    found = [torch.kron(parts[f"{stem}{x}.lokr_w1"], parts[f"{stem}{x}.lokr_w2"]) for x in "qkv"]
    assert torch.equal(torch.cat(found), whole)


NO_PLACE = {
    "LoHa to PEFT": (other_methods()["LoHa"], "peft", "peft has no place for its hada_w1_a"),
    "LoKr to diffusers": (other_methods()["LoKr"], "diffusers", "diffusers has no place for its lokr_w1"),
    "LoKr between rows": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": torch.ones(2, 2),
            "lora_unet_double_blocks_0_img_attn_qkv.lokr_w2": torch.ones(12, 4),
        },
        "lycoris",
        "its lokr_w1 cannot be taken apart at row 8",
    ),
    "magnitudes of inputs": (
        {
            **lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * WIDTH, WIDTH),
            "lora_unet_double_blocks_0_img_attn_qkv.dora_scale": torch.ones(1, WIDTH),
        },
        "diffusers",
        "has magnitudes of the fused layer's inputs",
    ),
    "scales that differ": (
        {
            **lora(f"{BLOCK}.attn.to_q", WIDTH, WIDTH, alpha=1.0),
            **lora(f"{BLOCK}.attn.to_k", WIDTH, WIDTH, alpha=2.0),
        },
        "kohya",
        "its parts have several scales (0.25, 0.5)",
    ),
    "a key that no rule explains": (
        {**lora("lora_unet_double_blocks_0_img_attn_qkv", 24, 8), "something": torch.ones(1)},
        "comfyui",
        "no rule explains its key something",
    ),
    "two spellings of one layer": (
        {
            **lora("lora_unet_double_blocks_0_img_attn_qkv", 24, 8),
            **lora("diffusion_model.double_blocks.0.img_attn.qkv", 24, 8),
        },
        "comfyui",
        "two sets of keys are of this layer",
    ),
    "two spellings of a part": (
        {
            **lora(f"{BLOCK}.attn.to_q", WIDTH, WIDTH),
            **lora("lora_unet_single_transformer_blocks_0_attn_to_q", WIDTH, WIDTH),
        },
        "kohya",
        "two sets of keys are of transformer.single_transformer_blocks.0.attn.to_q.weight",
    ),
    "no family": (lora("lora_unet_x_y", 8, 8), "comfyui", "its keys do not tell the family"),
}


@pytest.mark.parametrize("case", NO_PLACE)
def test_what_has_no_place_is_refused_and_nothing_written(tmp_path: Path, case: str) -> None:
    tensors, target, message = NO_PLACE[case]
    save_file(tensors, tmp_path / "x")
    with pytest.raises(InputError) as caught:
        respell(tmp_path / "x", to=target, output=tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_alphas_keep_their_format_through_a_configuration(tmp_path: Path, target: str, dtype: torch.dtype) -> None:
    stem = "lora_unet_double_blocks_0_img"
    tensors = {
        **lora(f"{stem}_mlp_0", 32, 8, alpha=1.5),
        **lora(f"{stem}_mlp_2", 8, 32, alpha=None),
        **lora(f"{stem}_attn_proj", 8, 8, rank=2, alpha=1.0),
    }
    tensors = {key: value.to(dtype) for key, value in tensors.items()}
    tensors[f"{stem}_attn_proj.alpha"] = tensors[f"{stem}_attn_proj.alpha"].reshape(1)
    save_file(tensors, tmp_path / "x")
    respell(tmp_path / "x", to=target, output=tmp_path / "there")
    respell(tmp_path / "there", to="kohya", output=tmp_path / "back")
    assert_same(tensors, tensors_of(tmp_path / "back"))


def test_metadata_go_along_and_hashes_are_those_of_the_result(tmp_path: Path) -> None:
    said = {"ss_tag_frequency": "{}", "modelspec.title": "x", "modelspec.hash_sha256": "0x0", "sshs_legacy_hash": "ab"}
    save_file(lora("lora_unet_double_blocks_0_img_attn_qkv", 24, 8), tmp_path / "x", metadata=said)
    respell(tmp_path / "x", to="comfyui", output=tmp_path / "there")
    found = metadata_of(tmp_path / "there")
    raw = (tmp_path / "there").read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert found["modelspec.hash_sha256"] == f"0x{digest}"
    assert (found["ss_tag_frequency"], found["modelspec.title"]) == ("{}", "x")
    assert "sshs_legacy_hash" not in found
    respell(tmp_path / "there", to="kohya", output=tmp_path / "back")
    raw = (tmp_path / "back").read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert metadata_of(tmp_path / "back")["sshs_model_hash"] == digest
