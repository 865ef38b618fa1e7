"""Configurations of published models, for single files, which say none: how each differs from its class's own.

None is taken on trust: one is used only if every weight of the file has its place and shape in the class it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a file's tensors, by key."""

Settings = Mapping[str, Any]

CONV_IN: Final = "input_blocks.0.0.weight"

FOUR: Final = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}

UNETS: Final[Mapping[int, Settings]] = {
    768: {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    1024: {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    2048: {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    1280: {
        "cross_attention_dim": 1280,
        "attention_head_dim": [6, 12, 24, 24],
        "use_linear_projection": True,
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
        "sample_size": 128,
    },
}
"""Stable Diffusion 1, 2, XL and XL's refiner, by the width of their texts."""

CLIP_L: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
OPEN_CLIP_H: Final = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
OPEN_CLIP_G: Final = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
T5_XXL: Final = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}

WAN_SMALL: Final = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
WAN_5B: Final = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}

KNOWN: Final[Mapping[str, tuple[Settings, ...]]] = {
    "FluxTransformer2DModel": (
        {"guidance_embeds": True},
        {},
        {"guidance_embeds": True, "in_channels": 384, "out_channels": 64},
        {"guidance_embeds": True, "in_channels": 128, "out_channels": 64},
    ),
    "SD3Transformer2DModel": (
        {"caption_projection_dim": 1536, "num_attention_heads": 24, "num_layers": 24, "pos_embed_max_size": 192},
        {
            "caption_projection_dim": 1536,
            "num_attention_heads": 24,
            "num_layers": 24,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": [*range(13)],
        },
        {
            "caption_projection_dim": 2432,
            "num_attention_heads": 38,
            "num_layers": 38,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "WanTransformer3DModel": (
        {},
        WAN_SMALL,
        WAN_5B,
        {"in_channels": 36},
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "Flux2Transformer2DModel": (
        {},
        {
            "guidance_embeds": False,
            "joint_attention_dim": 7680,
            "num_attention_heads": 24,
            "num_layers": 5,
            "num_single_layers": 20,
        },
        {
            "guidance_embeds": False,
            "joint_attention_dim": 12288,
            "num_attention_heads": 32,
            "num_layers": 8,
            "num_single_layers": 24,
        },
    ),
    "CLIPTextModel": (CLIP_L, OPEN_CLIP_H),
    "CLIPTextModelWithProjection": (CLIP_L, OPEN_CLIP_G),
    "T5EncoderModel": (T5_XXL,),
}
"""What may be tried for a class, the most common first; of others only the class's own settings are."""


def known_settings(class_name: str, shapes: Shapes) -> tuple[Settings, ...]:
    """Return the configurations of published models that a file of these shapes could have.

    Args:
        class_name: the class of the part.
        shapes: the shapes of its tensors, as the file has them, without what stands in front of all keys.
    """
    if class_name == "UNet2DConditionModel":
        return _unet(shapes)
    if class_name == "AutoencoderKL":
        return _autoencoder(shapes)
    return KNOWN.get(class_name, ({},))


def _unet(shapes: Shapes) -> tuple[Settings, ...]:
    width = next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), 0)
    first = shapes.get(CONV_IN)
    if width not in UNETS or first is None:
        return ()
    return ({**UNETS[width], "in_channels": first[1]},)


def _autoencoder(shapes: Shapes) -> tuple[Settings, ...]:
    first = shapes.get("decoder.conv_in.weight")
    if first is None:
        return ()
    said = {"use_quant_conv": "quant_conv.weight", "use_post_quant_conv": "post_quant_conv.weight"}
    return ({**FOUR, "latent_channels": first[1], **{name: key in shapes for name, key in said.items()}},)
