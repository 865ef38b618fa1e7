"""Guess an architecture from the names and widths of layers, to name it in errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

WIDTHS: Final[Mapping[int, str]] = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
"""By the width of the text that cross-attention sees."""

NAMES: Final[tuple[tuple[str, str], ...]] = (
    (r"single_transformer_blocks|double_blocks|(?<!down_)single_blocks", "Flux"),
    (r"joint_blocks|transformer_blocks_\d+_attn_add_[kqv]_proj|add_k_proj", "Stable Diffusion 3"),
    (r"lora_te2_|text_encoder_2|add_embedding|label_emb|(input|output)_blocks_\d+_\d+|middle_block_", "SDXL"),
)
"""Marks in names, the surest first; dots are underscores."""

CONTEXT: Final = re.compile(r"attn2_to_[kv]\b|attn2_to_[kv]$")
KINDS: Final[tuple[tuple[str, str], ...]] = (
    (r"down_blocks|up_blocks|mid_block", "a UNet of diffusers"),
    (r"(^|_)layers_\d+_(self_attn|mlp)|text_model_encoder|attention_self", "a language model or text encoder"),
)


def looks_like(widths: Mapping[str, int]) -> str:
    """Return the architecture that layers look like; empty if nothing tells.

    Args:
        widths: the number of inputs of each layer (0 if unknown), by any spelling of its name.
    """
    flat = {name.replace(".", "_"): width for name, width in widths.items()}
    for pattern, found in NAMES:
        if any(re.search(pattern, name) for name in flat):
            return found
    for name, width in flat.items():
        if CONTEXT.search(name) and width in WIDTHS:
            return WIDTHS[width]
    for pattern, found in KINDS:
        if any(re.search(pattern, name) for name in flat):
            return found
    return ""
