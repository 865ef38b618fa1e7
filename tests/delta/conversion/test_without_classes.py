"""A δ becomes a LoRA of a UNet without its class: neither diffusers nor transformers is imported for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.modules.conv import _ConvNd

from svdiff_delta import Delta, convert
from svdiff_delta.base_model import component
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.base_model.live_names import OLD_ATTENTION, LiveNames
from svdiff_delta.conversion.convolutions import ALL_PLAIN
from svdiff_train.tiny import open_tiny

EMBEDDED = {"class_embedding.weight"}
SIZES = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8}
CONFIGURED: dict[str, dict[str, Any]] = {
    "as Stable Diffusion": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "with skips and linear projections": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
    "as DeepFloyd": {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "text_proj",
    },
    "with classes": {
        "down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D"),
        "num_class_embeds": 3,
        "use_linear_projection": True,
    },
    "as Kandinsky's controls": {
        "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"),
        "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D"),
        "mid_block_type": None,
        "addition_embed_type": "image_hint",
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "image_proj",
    },
}


@pytest.mark.parametrize("to", ["kohya", "diffusers", "lycoris", "comfyui", "peft"])
def test_no_class_is_built(to: str, delta: Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> nn.Module:
        raise AssertionError("a class was built")

    monkeypatch.setattr(component, "shared_skeleton", build)
    found = convert(delta, to=to, base=open_tiny(), rank=2, output=tmp_path / "lora")
    assert found.ranks


@pytest.mark.parametrize("name", CONFIGURED)
def test_its_layers_are_plain_however_it_is_configured(name: str) -> None:
    assert set(ALL_PLAIN) == {UNet2DConditionModel.__name__}
    with torch.device("meta"):
        model = UNet2DConditionModel(sample_size=8, **SIZES, **CONFIGURED[name])
    assert all(axis == 0 for _, _, axis in shiftable(model))
    assert {key for key, _, _ in shiftable(model, on_request=True)} - {
        key for key, _, _ in shiftable(model)
    } <= EMBEDDED
    found = [layer for layer in model.modules() if isinstance(layer, _ConvNd)]
    assert len(found) > 3
    for layer in found:
        assert type(layer) is nn.Conv2d
        assert (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros")


@pytest.mark.parametrize("name", CONFIGURED)
def test_keys_that_do_not_look_old_are_not_renamed(name: str) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(sample_size=8, **SIZES, **CONFIGURED[name])
    keys = [key for key, _ in model.named_parameters()]
    assert not any(map(OLD_ATTENTION.search, keys))
    old = [key.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn.") for key in keys]
    for files in (keys, old, [*keys, *old]):
        live = LiveNames(model, files).live
        assert all(key == live.get(key, key) for key in files if not OLD_ATTENTION.search(key))
