"""Keys of adapters, in every program's spelling, taken apart into component, path and role."""

from __future__ import annotations

import pytest

from svdiff_delta.format.adapter_families import family_of, family_of_modules
from svdiff_delta.format.adapter_keys import PREFIXES, SUFFIXES, spell, split_module

DOTTED = [prefix for prefix in PREFIXES if not prefix.flat]
FLAT = [prefix for prefix in PREFIXES if prefix.flat]
PATH = "blocks.0.attn.to_k"
ENDS = {
    "lora_down.weight": "lora_down.weight",
    "lora_up.default.weight": "lora_up.weight",
    "lora_mid.weight": "lora_mid.weight",
    "lora_A.weight": "lora_down.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_B.bias": "lora_up.bias",
    "lora_B.default.bias": "lora_up.bias",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector.default.weight": "dora_scale",
    "lokr_w1": "lokr_w1",
    "lokr_w2_a": "lokr_w2_a",
    "lokr_t2": "lokr_t2",
    "hada_w1_b": "hada_w1_b",
    "hada_t2": "hada_t2",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "w_norm",
}


@pytest.mark.parametrize("end", ENDS)
def test_every_prefix_goes_with_every_suffix(end: str) -> None:
    for prefix in DOTTED:
        found = spell(f"{prefix.text}{PATH}.{end}")
        assert found is not None
        assert (found.prefix, found.component, found.path) == (prefix.text, prefix.component, PATH)
        assert (found.role, found.flat, found.module) == (ENDS[end], False, prefix.text + PATH)
    for prefix in FLAT:
        flat = PATH.replace(".", "_")
        found = spell(f"{prefix.text}{flat}.{end}")
        assert found is not None
        assert (found.prefix, found.component, found.path) == (prefix.text, prefix.component, flat)
        assert (found.role, found.flat) == (ENDS[end], True)


def test_every_suffix_of_the_table_is_tried() -> None:
    import re

    for suffix in SUFFIXES:
        ends = [
            *(f".{end}" for end in ENDS),
            ".to_q_lora.down.weight",
            ".to_q_lora.up.weight",
            ".lora_up.bias",
            ".lora_A",
        ]
        ends += [f".processor.qkv_lora1.{side}.weight" for side in ("down", "up")] + [".lora.up.weight", ".b_norm"]
        assert any(re.search(rf"(?:{suffix.pattern})\Z", end) for end in ends), suffix


@pytest.mark.parametrize(
    ("key", "component", "path"),
    [
        ("a.b.lora_A.weight", "", "a.b"),
        ("unet.base_model.model.a.b.lora_A.weight", "unet", "a.b"),
        ("base_model.model.transformer.a.lora_A.weight", "transformer", "a"),
        ("base_model.model.diffusion_model.a.lora_A.weight", "", "a"),
        ("model.diffusion_model.a.lora_up.weight", "", "a"),
        ("text_encoders.clip_g.transformer.text_model.a.lora_A.weight", "clip_g", "text_model.a"),
        ("unet.x.processor.to_q_lora.down.weight", "unet", "x.processor.to_q"),
        ("double_blocks.0.processor.qkv_lora2.up.weight", "", "double_blocks.0.processor.qkv_lora2"),
        ("transformer.lora_A.weight", "", "transformer"),
        ("lora_unet_a.b.lora_A.weight", "", "lora_unet_a.b"),
    ],
)
def test_prefixes_follow_each_other(key: str, component: str, path: str) -> None:
    found = spell(key)
    assert found is not None
    assert (found.component, found.path) == (component, path)


@pytest.mark.parametrize(
    "key", ["a.b.weight", "a.down.weight", "lora_A.weight", ".alpha", "a.oft_blocks", "a.lora_C.weight"]
)
def test_a_key_that_no_rule_explains_is_none(key: str) -> None:
    assert spell(key) is None


def test_the_name_of_a_module_is_taken_apart_likewise() -> None:
    found = split_module("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    assert (found.component, found.flattened) == ("text_encoder_2", "text_model_encoder_layers_0_mlp_fc1")


LORAS = {
    "Flux": ["transformer.single_transformer_blocks.0.proj_mlp", "lora_unet_double_blocks_0_img_attn_qkv"],
    "Flux.2": [
        "diffusion_model.double_stream_modulation_img.lin",
        "lora_transformer_transformer_blocks_0_ff_linear_in",
    ],
    "Qwen-Image": ["lora_unet_transformer_blocks_0_img_mlp_net_0_proj", "pipe.dit.transformer_blocks.59.attn.to_k"],
    "Z-Image": ["diffusion_model.layers.0.attention.to_q", "lora_unet_noise_refiner_0_attention_qkv"],
    "Lumina 2": ["transformer.layers.0.attn.to_q", "lora_unet_layers_3_feed_forward_linear_1"],
    "Wan": ["diffusion_model.blocks.0.self_attn.q", "transformer.blocks.3.attn2.to_k", "lora_unet__blocks_0_ffn_0"],
    "Stable Diffusion 3": [
        "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "transformer.transformer_blocks.0.attn.add_k_proj",
    ],
    "SDXL": ["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "diffusion_model.middle_block.1.proj_in"],
    "Chroma": ["diffusion_model.distilled_guidance_layer.in_proj"],
    "HiDream": ["transformer.double_stream_blocks.0.block.attn1.to_q"],
    "AuraFlow": ["diffusion_model.double_layers.0.attn.w1q", "transformer.joint_transformer_blocks.0.attn.to_q"],
    "Krea 2": ["base_model.model.blocks.0.attn.wq", "lycoris_transformer_blocks_0_attn_to_gate"],
    "SANA": ["transformer.transformer_blocks.0.ff.conv_inverted"],
    "LTX-2": ["diffusion_model.transformer_blocks.0.audio_attn1.to_q"],
}


@pytest.mark.parametrize(("family", "module"), [(family, name) for family, names in LORAS.items() for name in names])
def test_a_family_is_told_by_one_of_its_keys(family: str, module: str) -> None:
    assert family_of({f"{module}.lora_down.weight": (4, 64), f"{module}.lora_up.weight": (64, 4)}) == family
    assert family_of_modules({module: 64}) == family


@pytest.mark.parametrize(
    ("width", "family"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL")]
)
def test_unets_are_told_by_the_width_of_their_text(width: int, family: str) -> None:
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert family_of({f"{module}.lora_down.weight": (4, width)}) == family


def test_bfl_s_names_are_told_apart_by_what_the_fused_layer_holds() -> None:
    down = {"diffusion_model.single_blocks.0.linear1.lora_A.weight": (4, 32)}
    key = "diffusion_model.single_blocks.0.linear1.lora_B.weight"
    assert family_of({**down, key: (7 * 32, 4)}) == "Flux"
    assert family_of({**down, key: (9 * 32, 4)}) == "Flux.2"


def test_nothing_is_guessed_of_other_names() -> None:
    assert family_of({"a.b.lora_A.weight": (4, 8)}) == ""
    assert family_of({"a.weight": (4, 8)}) == ""
