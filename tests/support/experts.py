"""Tiny mixtures of experts of real classes, stacked both ways round, with random weights that float16 holds."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn

from .weights import normal

SIZES: Final[dict[str, Any]] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
OWN: Final[dict[str, dict[str, Any]]] = {
    "Mixtral": {"num_local_experts": 2},
    "Qwen3Moe": {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 3},
    "GptOss": {"num_local_experts": 2, "num_experts_per_tok": 2},
    "Llama4": {
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 24,
    },
    "JetMoe": {"num_local_experts": 2, "num_experts_per_tok": 2, "kv_channels": 4, "num_key_value_heads": 1},
    "NemotronH": {
        "layers_block_type": ["moe"],
        "n_routed_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "moe_shared_expert_intermediate_size": 12,
        "n_group": 1,
        "topk_group": 1,
        "mamba_num_heads": 2,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 4,
    },
    "LongcatFlash": {
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "expert_ffn_hidden_size": 12,
        "ffn_hidden_size": 24,
        "n_routed_experts": 2,
        "zero_expert_num": 0,
        "moe_topk": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
}
IDS: Final = torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(0))


@cache
def _original(name: str) -> nn.Module:
    text = "Text" if name == "Llama4" else ""
    config = getattr(transformers, f"{name}{text}Config")(**{**SIZES, **OWN[name]})
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config).float().requires_grad_(False).eval()
    for index, parameter in enumerate(model.parameters()):
        center = 1.0 if parameter.ndim == 1 else 0.0
        parameter.data = (center + 0.2 * normal(*parameter.shape, seed=index)).half().float()
    return model


def mixture(name: str, implementation: str = "eager") -> Any:
    """A new copy of a tiny mixture of experts; all experts are used by every token."""
    model: Any = copy.deepcopy(_original(name))
    model.config._experts_implementation = implementation
    return model


def run(model: nn.Module) -> Tensor:
    """What it computes; gradients flow if something takes them."""
    return torch.as_tensor(model(input_ids=IDS, use_cache=False).logits)
