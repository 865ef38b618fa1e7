"""The layers of Flux, Chroma and Flux.2 under the names of Black Forest Labs' code, which kohya and ComfyUI go by."""

from __future__ import annotations

from typing import Final

from .original_layer import layers, within

_DOUBLE: Final = {"double_blocks.{}": "transformer_blocks.{}"}
_SINGLE: Final = {"single_blocks.{}": "single_transformer_blocks.{}"}
_STREAMS: Final = {
    "img_attn.qkv": "attn.to_q + attn.to_k + attn.to_v",
    "txt_attn.qkv": "attn.add_q_proj + attn.add_k_proj + attn.add_v_proj",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_BFL: Final = {
    **within(
        _DOUBLE,
        {
            **_STREAMS,
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
            "img_mod.lin": "norm1.linear",
            "txt_mod.lin": "norm1_context.linear",
        },
    ),
    **within(
        _SINGLE,
        {
            "linear1": "attn.to_q + attn.to_k + attn.to_v + proj_mlp",
            "linear2": "proj_out",
            "modulation.lin": "norm.linear",
            "norm.query_norm": "attn.norm_q",
            "norm.key_norm": "attn.norm_k",
        },
    ),
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
}
_XLABS: Final = {
    **within(
        _DOUBLE,
        {
            "processor.qkv_lora1": "attn.to_q + attn.to_k + attn.to_v",
            "processor.qkv_lora2": "attn.add_q_proj + attn.add_k_proj + attn.add_v_proj",
            "processor.proj_lora1": "attn.to_out.0",
            "processor.proj_lora2": "attn.to_add_out",
        },
    ),
    **within(_SINGLE, {"processor.qkv": "attn.to_q + attn.to_k + attn.to_v", "processor.proj": "proj_out"}),
}

FLUX: Final = (
    *layers(
        {
            **_BFL,
            "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
            "final_layer.adaLN_modulation.1": "~norm_out.linear",
        }
    ),
    *layers(_XLABS, reads=True),
)

CHROMA: Final = layers(
    {
        **_BFL,
        "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
        "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
        "distilled_guidance_layer.layers.{}.in_layer": "distilled_guidance_layer.layers.{}.linear_1",
        "distilled_guidance_layer.layers.{}.out_layer": "distilled_guidance_layer.layers.{}.linear_2",
        "distilled_guidance_layer.norms.{}": "distilled_guidance_layer.norms.{}",
    }
)

FLUX2: Final = layers(
    {
        **within(
            _DOUBLE,
            {
                **_STREAMS,
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
        ),
        **within(
            _SINGLE,
            {
                "linear1": "attn.to_qkv_mlp_proj",
                "linear2": "attn.to_out",
                "norm.query_norm": "attn.norm_q",
                "norm.key_norm": "attn.norm_k",
            },
        ),
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "~norm_out.linear",
    }
)
