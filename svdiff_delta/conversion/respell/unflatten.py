"""Put the dots back into a flat name, where the words of a family's layers leave only one way."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from svdiff_delta.format.original_layers import ORIGINALS

# Of layers that are called alike in the original code, and so stand in no table of names.
_TEXT: Final = (
    "attention_norm1 attention_norm2 ffn_norm1 ffn_norm2 cap_embedder final_layer k_rms_norm q_rms_norm k_rms_norm_t "
    "q_rms_norm_t pooled_embedder norm1_i norm1_t norm3_i norm3_t all_x_embedder all_final_layer "
    "transformer_blocks single_transformer_blocks joint_transformer_blocks double_stream_blocks "
    "single_stream_blocks blocks layers noise_refiner context_refiner block attn attn1 attn2 attn3 "
    "attention ff ff_context ff_i ff_t feed_forward net proj linear linear_1 linear_2 linear_3 linear_in "
    "linear_out w1 w2 w3 gate up down experts shared_experts to_q to_k to_v to_out to_add_out to_gate "
    "to_q_t to_k_t to_v_t to_out_t add_q_proj add_k_proj add_v_proj to_qkv_mlp_proj proj_mlp proj_out "
    "proj_in img_mlp txt_mlp img_mod txt_mod img_in txt_in norm norm1 norm2 norm3 norm1_context norm_out "
    "norm_q norm_k norm_added_q norm_added_k norm_k_img adaLN_modulation time_text_embed "
    "timestep_embedder text_embedder guidance_embedder x_embedder context_embedder time_embed time_proj "
    "time_embedder condition_embedder image_embedder conv_inverted conv_depth conv_point pos_embed "
    "caption_projection caption_embedder time_caption_embed t_embedder p_embedder mlp patch_embed emb "
)
WORDS: Final = frozenset(_TEXT.split())
"""Words between dots."""


@cache
def _words(kind: str) -> frozenset[str]:
    parts = (
        part for layer in ORIGINALS.get(kind, ()) for name in (layer.name, *layer.parts) for part in name.split(".")
    )
    return WORDS | {word for word in parts if "{" not in word}


def dotted(kind: str, flat: str) -> str | None:
    """Return a flat name with dots: of the ways to read it the one with the fewest words; None if there is not one.

    Args:
        kind: the class of the transformer.
        flat: the name, with underscores for dots.
    """
    words, pieces = _words(kind), flat.split("_")
    # Of each beginning: the readings with the fewest words, at most two of them.
    ways: list[list[tuple[str, ...]]] = [[()]]
    for stop in range(1, len(pieces) + 1):
        found = []
        for start in range(stop):
            word = "_".join(pieces[start:stop])
            if word in words or re.fullmatch(r"\d+", word):
                found += [(*way, word) for way in ways[start]]
        least = min(map(len, found), default=0)
        ways.append([way for way in found if len(way) == least][:2])
    return ".".join(ways[-1][0]) if len(ways[-1]) == 1 else None
