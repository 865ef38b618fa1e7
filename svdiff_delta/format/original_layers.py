"""The layers of transformers under the names of their families' original code, by the class that diffusers has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .original_flux import CHROMA, FLUX, FLUX2
from .original_layer import Layer, layers, within

QKV: Final = "to_q + to_k + to_v"
SD3: Final = layers(
    {
        **within(
            {"joint_blocks.{}": "transformer_blocks.{}"},
            {
                "x_block.attn.qkv": "attn.to_q + attn.to_k + attn.to_v",
                "context_block.attn.qkv": "attn.add_q_proj + attn.add_k_proj + attn.add_v_proj",
                "x_block.attn2.qkv": "attn2.to_q + attn2.to_k + attn2.to_v",
                "x_block.attn.proj": "attn.to_out.0",
                "context_block.attn.proj": "attn.to_add_out",
                "x_block.attn2.proj": "attn2.to_out.0",
                "x_block.attn.ln_q": "attn.norm_q",
                "x_block.attn.ln_k": "attn.norm_k",
                "context_block.attn.ln_q": "attn.norm_added_q",
                "context_block.attn.ln_k": "attn.norm_added_k",
                "x_block.attn2.ln_q": "attn2.norm_q",
                "x_block.attn2.ln_k": "attn2.norm_k",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
                "x_block.adaLN_modulation.1": "norm1.linear",
                "context_block.adaLN_modulation.1": "?~norm1_context.linear",
            },
        ),
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "~norm_out.linear",
    }
)

_REFINED: Final = {stem: stem for stem in ("layers.{}", "noise_refiner.{}", "context_refiner.{}")}

Z_IMAGE: Final = layers(
    {
        **within(
            _REFINED,
            {
                "attention.qkv": "attention.to_q + attention.to_k + attention.to_v",
                "attention.out": "attention.to_out.0",
                "attention.q_norm": "attention.norm_q",
                "attention.k_norm": "attention.norm_k",
            },
        ),
        "x_embedder": "all_x_embedder.2-1",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    }
)

LUMINA2: Final = layers(
    {
        **within(
            _REFINED,
            {
                "attention.qkv": "attn.to_q + attn.to_k + attn.to_v",
                "attention.out": "attn.to_out.0",
                "attention.q_norm": "attn.norm_q",
                "attention.k_norm": "attn.norm_k",
                "feed_forward.w1": "feed_forward.linear_1",
                "feed_forward.w2": "feed_forward.linear_2",
                "feed_forward.w3": "feed_forward.linear_3",
                "adaLN_modulation.1": "norm1.linear",
                "attention_norm2": "norm2",
            },
        ),
        "context_refiner.{}.attention_norm1": "context_refiner.{}.norm1",
        "layers.{}.attention_norm1": "layers.{}.norm1.norm",
        "noise_refiner.{}.attention_norm1": "noise_refiner.{}.norm1.norm",
        "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
        "cap_embedder.{}": "time_caption_embed.caption_embedder.{}",
        "final_layer.adaLN_modulation.1": "norm_out.linear_1",
        "final_layer.linear": "norm_out.linear_2",
    }
)

WAN: Final = layers(
    {
        **within(
            {"blocks.{}": "blocks.{}"},
            {
                **{
                    f"self_attn.{old}": f"attn1.{new}"
                    for old, new in zip("qkvo", [*QKV.split(" + "), "to_out.0"], strict=True)
                },
                **{
                    f"cross_attn.{old}": f"attn2.{new}"
                    for old, new in zip("qkvo", [*QKV.split(" + "), "to_out.0"], strict=True)
                },
                "cross_attn.k_img": "attn2.add_k_proj",
                "cross_attn.v_img": "attn2.add_v_proj",
                "self_attn.norm_q": "attn1.norm_q",
                "self_attn.norm_k": "attn1.norm_k",
                "cross_attn.norm_q": "attn2.norm_q",
                "cross_attn.norm_k": "attn2.norm_k",
                "cross_attn.norm_k_img": "attn2.norm_added_k",
                "norm3": "norm2",
                "ffn.0": "ffn.net.0.proj",
                "ffn.2": "ffn.net.2",
            },
        ),
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
        "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
        "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
        "head.head": "proj_out",
    }
)

LTX: Final = layers(
    {
        "patchify_proj": "proj_in",
        "adaln_single.emb.timestep_embedder.linear_{}": "time_embed.emb.timestep_embedder.linear_{}",
        "adaln_single.linear": "time_embed.linear",
        "transformer_blocks.{}.attn1.q_norm": "transformer_blocks.{}.attn1.norm_q",
        "transformer_blocks.{}.attn1.k_norm": "transformer_blocks.{}.attn1.norm_k",
        "transformer_blocks.{}.attn2.q_norm": "transformer_blocks.{}.attn2.norm_q",
        "transformer_blocks.{}.attn2.k_norm": "transformer_blocks.{}.attn2.norm_k",
    }
)

_AURA: Final = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}

AURAFLOW: Final = layers(
    {
        **within(
            {"double_layers.{}": "joint_transformer_blocks.{}"},
            {
                **{f"attn.w2{x}": f"attn.to_{x}" for x in "qkv"},
                **{f"attn.w1{x}": f"attn.add_{x}_proj" for x in "qkv"},
                "attn.w2o": "attn.to_out.0",
                "attn.w1o": "attn.to_add_out",
                **{f"mlpX.{old}": f"ff.{new}" for old, new in _AURA.items()},
                **{f"mlpC.{old}": f"ff_context.{new}" for old, new in _AURA.items()},
                "modX.1": "norm1.linear",
                "modC.1": "norm1_context.linear",
            },
        ),
        **within(
            {"single_layers.{}": "single_transformer_blocks.{}"},
            {
                **{f"attn.w1{x}": f"attn.to_{x}" for x in "qkv"},
                "attn.w1o": "attn.to_out.0",
                **{f"mlp.{old}": f"ff.{new}" for old, new in _AURA.items()},
                "modCX.1": "norm1.linear",
            },
        ),
        "t_embedder.mlp.0": "time_step_proj.linear_1",
        "t_embedder.mlp.2": "time_step_proj.linear_2",
        "cond_seq_linear": "context_embedder",
        "init_x_linear": "pos_embed.proj",
        "final_linear": "proj_out",
        "modF.1": "~norm_out.linear",
    }
)

_KREA: Final = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}

KREA2: Final = layers(
    {
        **within(
            {
                "blocks.{}": "transformer_blocks.{}",
                "txtfusion.layerwise_blocks.{}": "text_fusion.layerwise_blocks.{}",
                "txtfusion.refiner_blocks.{}": "text_fusion.refiner_blocks.{}",
            },
            _KREA,
        ),
        "first": "img_in",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
        "last.linear": "final_layer.linear",
    }
)

SANA: Final = layers(
    {
        **within(
            {"blocks.{}": "transformer_blocks.{}"},
            {
                "attn.qkv": "attn1.to_q + attn1.to_k + attn1.to_v",
                "attn.proj": "attn1.to_out.0",
                "cross_attn.q_linear": "attn2.to_q",
                "cross_attn.kv_linear": "attn2.to_k + attn2.to_v",
                "cross_attn.proj": "attn2.to_out.0",
                "mlp.inverted_conv.conv": "ff.conv_inverted",
                "mlp.depth_conv.conv": "ff.conv_depth",
                "mlp.point_conv.conv": "ff.conv_point",
            },
        ),
        "x_embedder.proj": "patch_embed.proj",
        "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
        "t_block.1": "time_embed.linear",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "attention_y_norm": "caption_norm",
        "final_layer.linear": "proj_out",
    },
    reads=True,  # all programs that know this family take diffusers' names
)

ORIGINALS: Final[Mapping[str, tuple[Layer, ...]]] = {
    "FluxTransformer2DModel": FLUX,
    "ChromaTransformer2DModel": CHROMA,
    "Flux2Transformer2DModel": FLUX2,
    "SD3Transformer2DModel": SD3,
    "ZImageTransformer2DModel": Z_IMAGE,
    "Lumina2Transformer2DModel": LUMINA2,
    "WanTransformer3DModel": WAN,
    "LTXVideoTransformer3DModel": LTX,
    "AuraFlowTransformer2DModel": AURAFLOW,
    "Krea2Transformer2DModel": KREA2,
    "SanaTransformer2DModel": SANA,
}
"""The layers of each transformer that has other names in the original code, by its class; others are called alike."""
