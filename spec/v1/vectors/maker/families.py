"""Deltas with names of several families of models, of which it is written down by hand what each name is part of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from .container import JSON
from .delta import Delta, Param
from .valid import made

FLUX: Final = """
transformer.transformer_blocks.0.attn.to_q: attn 0
transformer.transformer_blocks.0.attn.to_k: attn kv 0
transformer.transformer_blocks.0.attn.add_q_proj: attn ca 0
transformer.transformer_blocks.0.attn.add_k_proj: attn ca kv 0
transformer.transformer_blocks.1.attn.to_add_out: attn ca 1
transformer.transformer_blocks.1.attn.norm_added_k: attn ca 1 1d
transformer.transformer_blocks.1.ff.net.0.proj: mlp 1
transformer.transformer_blocks.1.ff_context.net.2: mlp 1
transformer.transformer_blocks.1.norm1.linear: 1
transformer.single_transformer_blocks.0.proj_mlp: mlp 0
transformer.single_transformer_blocks.10.attn.to_v: attn kv 10
transformer.single_transformer_blocks.10.attn.to_qkv_mlp_proj: attn kv mlp 10
transformer.time_text_embed.timestep_embedder.linear_1:
transformer.norm_out.linear:
text_encoder.text_model.encoder.layers.0.self_attn.k_proj: attn kv 0
text_encoder.text_model.encoder.layers.0.self_attn.out_proj: attn 0
text_encoder.text_model.encoder.layers.0.mlp.fc1: mlp 0
text_encoder.text_model.encoder.layers.0.layer_norm1: 0 1d
text_encoder_2.encoder.block.2.layer.0.SelfAttention.v: attn kv 2
text_encoder_2.encoder.block.2.layer.1.DenseReluDense.wi_0: mlp 2
text_encoder_2.encoder.final_layer_norm: 1d
"""
"""Flux with CLIP and T5, and the fused projection of Flux 2."""

JOINT: Final = """
transformer.transformer_blocks.0.attn.to_k: attn kv 0
transformer.transformer_blocks.0.attn.add_v_proj: attn ca kv 0
transformer.transformer_blocks.0.attn2.to_k: attn kv 0
transformer.transformer_blocks.0.ff.net.2: mlp 0
transformer_2.blocks.0.attn1.to_k: attn kv 0
transformer_2.blocks.0.attn2.to_v: attn ca kv 0
transformer_2.blocks.0.attn2.norm_k: attn ca 0 1d
transformer_2.blocks.12.ffn.net.0.proj: mlp 12
transformer_2.condition_embedder.text_embedder.linear_1:
unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q: attn 1
unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k: attn ca kv 1 unet-ca unet-ca-kv
unet.down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj: mlp 1
unet.down_blocks.1.resnets.0.conv1: 1 4d conv
unet.mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0: attn ca 3 unet-ca
unet.add_embedding.linear_1:
text_encoder_3.encoder.block.0.layer.0.SelfAttention.k: attn kv 0
"""
"""Stable Diffusion 3.5, whose second attention looks at the picture, Wan's second expert, and SDXL's UNet."""

LANGUAGE: Final = """
model.model.layers.0.self_attn.q_proj: attn 0
model.model.layers.0.self_attn.v_proj: attn kv 0
model.model.layers.0.mlp.gate_proj: mlp 0
model.model.layers.1.mlp.gate: mlp 1
model.model.layers.1.mlp.experts.gate_up_proj[0]: mlp experts 1
model.model.layers.1.mlp.experts.gate_up_proj[11]: mlp experts 1
model.model.layers.1.mlp.experts.2.down_proj: mlp experts 1
model.model.norm: 1d
Bert.encoder.layer.1.attention.self.query: attn 1
Bert.encoder.layer.1.attention.self.key: attn kv 1
Bert.encoder.layer.1.attention.output.dense: attn 1
Bert.encoder.layer.1.intermediate.dense: mlp 1
Bert.encoder.layer.1.output.dense: mlp 1
Bert.pooler.dense:
prior.h.0.attn.c_attn: attn kv 0
prior.h.0.attn.c_proj: attn 0
prior.h.0.mlp.c_fc: mlp 0
prior.h.0.ln_1: 0 1d
"""
"""A mixture of experts, BERT and GPT-2, with components that have no word."""

WORDS: Final = {
    "unet": ("unet",),
    "transformer": ("transformer", "transformer_2"),
    "text": ("text_encoder", "text_encoder_2", "text_encoder_3"),
    "text-1": ("text_encoder",),
    "text-2": ("text_encoder_2",),
    "text-3": ("text_encoder_3",),
    **{own.lower(): (own,) for own in ("transformer_2", "model", "Bert", "prior")},
}
PARTS: Final = "attn|ca-kv|ca|kv|mlp|experts|conv|1d|2d|4d"
SELECTOR: Final = re.compile(
    rf"(?:({'|'.join(WORDS)})(?:-(?=.)|$))?(?:({PARTS})(?:-(?=block)|$))?(?:block\.(\d+)(?:-(\d+))?)?"
)


BY_PART: Final = {
    "flux": ("attn", "CA", "kv", "ca-kv", "mlp", "2d !attn", "1d", "block.0", "block.1-10", "transformer-attn",
             "text-Attn", "text-2-mlp", "text-1-kv", "transformer-block.10", "text-block.0-2",
             "transformer-attn-block.1",
             "text-1-mlp text-2-1d !block.2", "transformer !transformer-mlp"),
    "joint": ("attn", "ca", "kv", "ca-kv", "mlp", "conv", "transformer", "transformer-ca", "transformer_2", "unet-ca",
              "unet-ca-kv", "unet-attn", "UNET-kv", "unet-mlp", "unet-ca-block.3", "Transformer_2-ca-kv", "block.1",
              "transformer_2-block.10-99", "text", "text-3-kv", "mid block.012"),
    "language": ("attn", "kv", "mlp", "experts", "!experts", "mlp !model-experts", "bert", "BERT-mlp", "prior-kv",
                 "prior-mlp prior-1d", "model-attn-block.0", "model-block.1", "block.0", "2d !attn !mlp"),
}  # fmt: skip
"""Selectors by part, of the deltas with names of families; spaces stand between several."""


def _words(text: str) -> dict[str, set[str]]:
    """Return what the names of a table are part of."""
    rows = (line.split(": ") if ": " in line else (line.rstrip(":"), "") for line in text.strip().splitlines())
    return {name if name.endswith("]") else f"{name}.weight": {*words.split()} for name, words in rows}


KNOWN: Final = {"flux": _words(FLUX), "joint": _words(JOINT), "language": _words(LANGUAGE)}


def deltas() -> dict[str, Delta]:
    """Return a delta of each table: two or more numbers of each parameter, no two alike."""
    return {name: _delta(names) for name, names in KNOWN.items()}


def _delta(names: Mapping[str, set[str]]) -> Delta:
    shapes = {"1d": (3,), "4d": (2, 2, 1, 1)}
    params = {
        name: Param(next((shapes[word] for word in words if word in shapes), (2, 3))) for name, words in names.items()
    }
    values = {
        name: [(7 * row + index + 1) / 64 for index in range(param.size)]
        for row, (name, param) in enumerate(params.items())
    }  # fmt: skip
    components = dict.fromkeys(sorted({name.partition(".")[0] for name in names}), "")
    more: dict[str, JSON] = {"must_understand": ["stacked"]} if any(name.endswith("]") for name in names) else {}
    return made(
        {name: (param, "F32", values[name]) for name, param in params.items()}, {"components": components}, **more
    )


def chosen(names: Iterable[str], selector: str) -> set[str] | None:
    """Return what a selector names by the tables, or None where it is none of theirs."""
    words = next((words for words in KNOWN.values() if words.keys() >= {*names}), None)
    match = SELECTOR.fullmatch(selector.lower())
    if words is None or match is None:
        return None
    component, part, first, last = match.groups()
    if component == "unet" and part in ("ca", "ca-kv"):
        part = f"unet-{part}"
    return {
        name
        for name in names
        if (component is None or name.partition(".")[0] in WORDS[component])
        and (part is None or _has(words[name], part))
        and (first is None or _within(words[name], int(first), int(last or first)))
    }


def _within(words: set[str], first: int, last: int) -> bool:
    return any(first <= int(word) <= last for word in words if word.isdigit())


def _has(words: set[str], part: str) -> bool:
    if part == "ca-kv":
        return words >= {"ca", "kv"}
    if part == "2d":
        return not words & {"1d", "4d"}
    return part in words
