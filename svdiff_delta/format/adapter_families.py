"""Tell the family of models that an adapter or a base is of, from names of modules and from widths.

Names alone are looked at, in any spelling that `adapter_keys` takes apart. Nothing is guessed from a name that several
families have, unless its width tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .adapter_keys import spell, split_module

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Mark:
    """What tells a family.

    Attributes:
        family: its name.
        names: a regular expression, searched in a module's path with underscores for dots.
        inputs: the widths (numbers of inputs) that such a module then has; empty where the name is enough.
        ratios: likewise its outputs by its inputs.
    """

    family: str
    names: str
    inputs: frozenset[int] = field(default_factory=frozenset)
    ratios: frozenset[float] = field(default_factory=frozenset)


def _of(family: str, names: str, *inputs: int, ratios: tuple[float, ...] = ()) -> Mark:
    return Mark(family, names, frozenset(inputs), frozenset(ratios))


MARKS: Final = (
    # Names that one family has.
    _of("Chroma", r"^distilled_guidance_layer_"),
    _of("Flux.2", r"to_qkv_mlp_proj|^(single|double)_stream_modulation"),
    _of("HunyuanVideo", r"individual_token_refiner|^double_blocks_\d+_(img|txt)_mlp_fc[12]$"),
    _of("HiDream", r"^(double|single)_stream_blocks_"),
    _of("AuraFlow", r"^joint_transformer_blocks_|^(double|single)_layers_\d+_attn_w[12][qkvo]$"),
    _of("Stable Diffusion 3", r"^joint_blocks_"),
    _of("Krea 2", r"^blocks_\d+_attn_w[qkvo]$|^txtfusion_|^text_fusion_|_attn_to_gate$"),
    _of("Anima", r"^blocks_\d+_self_attn_(q|k|v|output)_proj$|^llm_adapter_"),
    _of("Wan", r"^blocks_\d+_((self|cross)_attn_([qkvo]|[kv]_img)|ffn_(0|2)|attn[12]_|ffn_net_)"),
    _of("LTX-2", r"^transformer_blocks_\d+_audio_|^audio_"),
    _of("Qwen-Image", r"^transformer_blocks_\d+_(img|txt)_(mlp_net|mod_1)"),
    _of("SANA", r"_ff_conv_(inverted|depth|point)$"),
    _of("Ideogram 4", r"^layers_\d+_(attention_o|adaln_modulation)$"),
    _of("Lumina 2", r"^(layers|noise_refiner|context_refiner)_\d+_(attn_to_|feed_forward_linear_)"),
    # Names of two families: widths.
    _of("Lumina 2", r"^(layers|noise_refiner|context_refiner)_\d+_attention_(qkv|out)$", 2304),
    _of("Z-Image", r"^(layers|noise_refiner|context_refiner)_\d+_attention_(qkv|out)$"),
    _of("Ideogram 4", r"^layers_\d+_attention_to_[qkv]$", 4608),
    _of("Z-Image", r"^(layers|noise_refiner|context_refiner)_\d+_(attention_to_[qkv]|adaLN_modulation_0$)"),
    _of("Flux.2", r"^single_blocks_\d+_linear1$", ratios=(9.0,)),
    _of("Flux.2", r"^double_blocks_\d+_(img|txt)_mlp_0$", ratios=(6.0,)),
    _of("Flux.2", r"^transformer_blocks_\d+_ff(_context)?_linear_(in|out)$"),
    _of("AuraFlow", r"^single_transformer_blocks_\d+_ff_"),
    _of("Flux", r"^single_transformer_blocks_|^double_blocks_|^single_blocks_"),
    _of("Qwen-Image", r"^transformer_blocks_([4-9]\d|3[8-9])_attn_(add_|to_)"),
    _of("Stable Diffusion 3", r"^transformer_blocks_\d+_attn_add_[kqv]_proj$"),
    # UNets.
    _of("SDXL", r"^add_embedding_|^label_emb_|^(input|output)_blocks_\d+_\d+_|^middle_block_"),
    _of("Stable Diffusion 1.x", r"attn2_to_[kv]$", 768),
    _of("Stable Diffusion 2.x", r"attn2_to_[kv]$", 1024),
    _of("SDXL", r"attn2_to_[kv]$", 2048),
    _of("LTX-Video", r"^transformer_blocks_\d+_attn[12]_to_[qkv]$", 4096),
    _of("a UNet of diffusers", r"^(down|up)_blocks_|^mid_block_"),
    _of("a transformer of diffusers", r"^transformer_blocks_\d+_attn"),
    _of("a language model or text encoder", r"(^|_)layers_\d+_(self_attn|mlp)|attention_self"),
)
"""Marks of families, the surest first: the first of which some module has it tells."""


def family_of(shapes: Mapping[str, Shape]) -> str:
    """Return the family that an adapter's keys tell; empty if nothing tells.

    Args:
        shapes: the shape of each tensor by key, as the header of a file has them.
    """
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    encoders = False
    for key, shape in shapes.items():
        if (found := spell(key)) is None:
            continue
        encoders = encoders or found.component in ("text_encoder_2", "clip_g")
        if found.component.startswith(("text_encoder", "clip", "t5")):
            continue
        inputs.setdefault(found.flattened, 0)
        if found.role in ("lora_down.weight", "diff") and len(shape) > 1:
            inputs[found.flattened] = shape[1]
        if found.role in ("lora_up.weight", "diff") and shape:
            outputs[found.flattened] = shape[0]
    return _family(inputs, outputs) or ("SDXL" if encoders and not inputs else "")


def family_of_modules(widths: Mapping[str, int]) -> str:
    """Return the family that names of modules tell; empty if nothing tells.

    Args:
        widths: the number of inputs of each module (0 if unknown), by any spelling of its name.
    """
    flat: dict[str, int] = {}
    for name, width in widths.items():
        found = split_module(name)
        if not found.component.startswith(("text_encoder", "clip", "t5")):
            flat[found.flattened] = width
    return _family(flat or {name.replace(".", "_"): width for name, width in widths.items()}, {})


def _family(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> str:
    return next((mark.family for mark in MARKS if any(_fits(mark, name, inputs, outputs) for name in inputs)), "")


def _fits(mark: Mark, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bool:
    if not re.search(mark.names, name):
        return False
    if mark.inputs and inputs[name] not in mark.inputs:
        return False
    return not mark.ratios or (inputs[name] > 0 and outputs.get(name, 0) / inputs[name] in mark.ratios)
