"""Language models and text encoders of transformers."""

from __future__ import annotations

from typing import Any, Final

from .member import Member, ids, narrow, of, without, x

TEXT: Final[dict[str, Any]] = {"input_ids": ids(1, 6)}
PLAIN: Final[dict[str, Any]] = {**TEXT, "use_cache": False}
SMALL: Final[dict[str, Any]] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GROUPED: Final[dict[str, Any]] = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
LINEAR: Final[dict[str, Any]] = {
    **GROUPED,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
T5: Final[dict[str, Any]] = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
VISION: Final[dict[str, Any]] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
EXPERTS: Final[dict[str, Any]] = {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 2}

LANGUAGE: Final[dict[str, Member]] = {
    "BertModel": of(SMALL, **TEXT),
    "BloomForCausalLM": of({"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2}, **PLAIN),
    "CLIPTextModel": of(SMALL, **TEXT),
    "CLIPTextModelWithProjection": of({**SMALL, "projection_dim": 12}, **TEXT),
    "CLIPVisionModel": of(VISION, pixel_values=x(1, 3, 8, 8)),
    "CLIPVisionModelWithProjection": of({**VISION, "projection_dim": 12}, pixel_values=x(1, 3, 8, 8)),
    "CohereForCausalLM": of(GROUPED, **PLAIN),
    "DeepseekV3ForCausalLM": narrow(
        of(
            {
                **SMALL,
                "num_key_value_heads": 2,
                "moe_intermediate_size": 8,
                "n_routed_experts": 2,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 4,
                "v_head_dim": 8,
            },
            **PLAIN,
        )
    ),
    "Dinov2Model": of(VISION, pixel_values=x(1, 3, 8, 8)),
    "FalconForCausalLM": of(SMALL, **PLAIN),
    "Gemma2ForCausalLM": of(GROUPED, **PLAIN),
    "Gemma3ForCausalLM": of(GROUPED, **PLAIN),
    "GemmaForCausalLM": of(GROUPED, **PLAIN),
    "GlmModel": of(GROUPED, **PLAIN),
    "GlmForCausalLM": of(GROUPED, **PLAIN),
    "GPT2LMHeadModel": of({"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}, **PLAIN),
    "GPTNeoXForCausalLM": of(SMALL, **PLAIN),
    "GraniteForCausalLM": of(GROUPED, **PLAIN),
    "LlamaModel": of(GROUPED, **PLAIN),
    "Ministral3ForCausalLM": of(GROUPED, **PLAIN),
    "Qwen3Model": of(GROUPED, **PLAIN),
    "ClapTextModelWithProjection": of({**SMALL, "projection_dim": 12, "pad_token_id": 1}, **TEXT),
    "LlamaForCausalLM": of(GROUPED, **PLAIN),
    "Mamba2ForCausalLM": of(
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "state_size": 4,
            "n_groups": 1,
            "chunk_size": 4,
        },
        **PLAIN,
    ),
    "MambaForCausalLM": of(
        {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 2}, **PLAIN
    ),
    "Mistral3ForConditionalGeneration": without(
        {"model.vision_tower.*": "there is no picture", "model.multi_modal_projector.*": "there is no picture"},
        of(
            {
                "text_config": {"model_type": "mistral", **GROUPED},
                "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
                "image_token_index": 39,
            },
            **PLAIN,
        ),
    ),
    "MistralForCausalLM": of(GROUPED, **PLAIN),
    "MixtralForCausalLM": narrow(of({**GROUPED, "num_local_experts": 2}, **PLAIN)),
    "NemotronForCausalLM": of(GROUPED, **PLAIN),
    "Olmo2ForCausalLM": of(GROUPED, **PLAIN),
    "OPTForCausalLM": of(
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 16,
        },
        **PLAIN,
    ),
    "Phi3ForCausalLM": of({**GROUPED, "original_max_position_embeddings": 32}, **PLAIN),
    "PhiForCausalLM": of(SMALL, **PLAIN),
    "Qwen2_5_VLForConditionalGeneration": without(
        {"model.visual.*": "there is no picture"},
        of(
            {
                "text_config": {**GROUPED, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_heads": 2,
                    "out_hidden_size": 16,
                },
            },
            **PLAIN,
        ),
    ),
    "Qwen2ForCausalLM": of(GROUPED, **PLAIN),
    "Qwen3_5ForCausalLM": of(LINEAR, **PLAIN),
    "Qwen3ForCausalLM": of(GROUPED, **PLAIN),
    "Qwen3MoeForCausalLM": narrow(of({**GROUPED, **EXPERTS}, **PLAIN)),
    "Qwen3NextForCausalLM": narrow(of({**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 8}, **PLAIN)),
    "RobertaModel": of({**SMALL, "pad_token_id": 1}, **TEXT),
    "SiglipTextModel": of(SMALL, **TEXT),
    "SiglipVisionModel": of(VISION, pixel_values=x(1, 3, 8, 8)),
    "SmolLM3ForCausalLM": of(GROUPED, **PLAIN),
    "StableLmForCausalLM": of({**SMALL, "num_key_value_heads": 2}, **PLAIN),
    "T5EncoderModel": of(T5, **TEXT),
    "T5ForConditionalGeneration": of(T5, **PLAIN, decoder_input_ids=ids(1, 4, seed=1)),
    "T5GemmaEncoderModel": of({"encoder": GROUPED, "decoder": GROUPED, "is_encoder_decoder": False}, **TEXT),
    "UMT5EncoderModel": of(T5, **TEXT),
    "XLMRobertaModel": of({**SMALL, "pad_token_id": 1}, **TEXT),
}
