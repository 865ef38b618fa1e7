"""Subsets by structure name what the classes of all models say they are, in UNets, transformers and language models."""

from __future__ import annotations

import re

import pytest
import torch
from support.sd15 import LAYOUT
from support.zoo.language import LANGUAGE
from support.zoo.member import Member
from support.zoo.registry import DENOISERS
from support.zoo.structure import attention_layers, cross_layers, feed_forwards, within
from support.zoo.trial import class_of
from torch import nn

from svdiff_delta.base_model.kinds import class_shapes, shiftable
from svdiff_delta.errors import SelectionError
from svdiff_delta.selectors.match import match
from svdiff_delta.selectors.structure import part_of
from svdiff_delta.selectors.subsets import PARTS

MODELS = DENOISERS | LANGUAGE
NAMELESS = {
    "Kandinsky3UNet": "attention to picture and text has one name",
    "RFD4ProteinaTransformer": "attention of pairs of residues has more parts than its projections",
}
"""Models part of whose structure no name shows."""

OLD = {  # what the words stood for when they were written for Flux and Stable Diffusion
    "transformer-attn": r"transformer\..*(?:attn|attention|SelfAttention)",
    "transformer-mlp": r"transformer\..*\b(?:mlp|ff|ff_context|ff_net|DenseReluDense|proj_mlp|intermediate)\b",
    "text-attn": r"text_encoder(?:_\d+)?\..*(?:attn|attention|SelfAttention)",
    "text-mlp": r"text_encoder(?:_\d+)?\..*\b(?:mlp|ff|ff_context|ff_net|DenseReluDense|proj_mlp|intermediate)\b",
}

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # in diffusers' own Chroma


def build(name: str) -> nn.Module:
    member: Member = MODELS[name]
    cls = class_of(name)
    config = dict(member.config)
    with torch.device("meta"):
        return cls(cls.config_class(**config)) if getattr(cls, "config_class", None) else cls(**config)


def shapes_of(model: nn.Module, slot: str = "transformer") -> dict[str, tuple[int, ...]]:
    shapes = class_shapes(model)
    return {f"{slot}.{key}": shapes[key] for key, _, _ in shiftable(model) if key in shapes}


def chosen(shapes: dict[str, tuple[int, ...]], selector: str) -> set[str]:
    try:
        return {*match(shapes, [selector])}
    except SelectionError:
        return set()


@pytest.mark.parametrize("name", MODELS)
def test_a_subset_has_all_of_what_the_classes_say_it_is(name: str) -> None:
    model = build(name)
    shapes = shapes_of(model)
    attention, cross = (
        within(shapes, "transformer", attention_layers(model)),
        within(shapes, "transformer", cross_layers(model)),
    )
    feed_forward = within(shapes, "transformer", feed_forwards(model))
    found = {part: chosen(shapes, f"transformer-{part}") for part in PARTS}
    assert bool((attention - found["attn"]) | (cross - found["ca"])) == (name in NAMELESS)
    assert feed_forward <= found["mlp"]
    assert {each for each in shapes if ".experts." in each} == found["experts"] <= found["mlp"]
    assert bool(attention) <= bool(found["attn"])
    assert bool(attention) <= bool(found["kv"])
    assert not attention & feed_forward
    assert found["ca"] | found["kv"] <= found["attn"]
    assert found["ca-kv"] == found["ca"] & found["kv"]
    assert bool(found["ca"]) == bool(found["ca-kv"])
    assert found["attn"] | found["mlp"] < {*shapes}


@pytest.mark.parametrize(
    ("name", "mlp"),
    [
        ("ZImageTransformer2DModel", "layers.0.feed_forward.w1"),
        ("QwenImageTransformer2DModel", "transformer_blocks.0.txt_mlp.net.2"),
        ("WanTransformer3DModel", "blocks.0.ffn.net.0.proj"),
        ("Lumina2Transformer2DModel", "context_refiner.0.feed_forward.linear_3"),
        ("HiDreamImageTransformer2DModel", "single_stream_blocks.0.block.ff_i.experts.1.w2"),
        ("Ideogram4Transformer2DModel", "layers.0.feed_forward.w1"),
        ("Flux2Transformer2DModel", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
        ("PRXTransformer2DModel", "blocks.0.gate_proj"),
        ("GPT2LMHeadModel", "transformer.h.0.mlp.c_fc"),
        ("BertModel", "encoder.layer.1.output.dense"),
    ],
)
def test_the_feed_forward_is_that_of_the_blocks_and_no_embedder(name: str, mlp: str) -> None:
    found = chosen(shapes_of(build(name)), "transformer-mlp")
    assert f"transformer.{mlp}.weight" in found
    assert not [each for each in found if re.search("embed|attention|norm|pooler", each)]


@pytest.mark.parametrize("selector", OLD)
@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("transformer", "FluxTransformer2DModel"),
        ("transformer", "SD3Transformer2DModel"),
        ("text_encoder", "CLIPTextModel"),
        ("text_encoder_2", "CLIPTextModelWithProjection"),
        ("text_encoder_3", "T5EncoderModel"),
    ],
)
def test_the_words_mean_what_they_meant_on_flux_and_stable_diffusion(selector: str, slot: str, name: str) -> None:
    shapes = shapes_of(build(name), slot)
    assert chosen(shapes, selector) == {each for each in shapes if re.match(OLD[selector], each)}


def test_a_part_of_a_unet_is_the_paper_s_with_what_the_paper_has_no_word_for() -> None:
    assert chosen(LAYOUT, "unet-attn") == {name for name in LAYOUT if re.search(r"\.attn[12]\.", name)}
    assert chosen(LAYOUT, "unet-ca") == chosen(LAYOUT, "ca") < chosen(LAYOUT, "unet-attn")
    assert chosen(LAYOUT, "unet-ca-kv") == chosen(LAYOUT, "ca-kv") < chosen(LAYOUT, "unet-kv")
    assert chosen(LAYOUT, "unet-mlp") == {name for name in LAYOUT if ".ff." in name}
    assert chosen(LAYOUT, "unet-conv") == chosen(LAYOUT, "unet-4d")


def test_a_unet_whose_attention_takes_the_text_beside_the_picture_has_cross_attention() -> None:
    name = "unet.mid_block.attentions.0.{}.weight"
    shapes = {name.format(part): (8, 8) for part in ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")}
    assert chosen(shapes, "unet-ca") == chosen(shapes, "mid-ca") == {name.format(f"add_{part}_proj") for part in "kv"}


def test_second_attention_of_stable_diffusion_3_5_is_to_the_picture() -> None:
    blocks = [f"transformer.transformer_blocks.0.{layer}.weight" for layer in ("attn.to_k", "attn.add_k_proj")]
    shapes = dict.fromkeys([*blocks, "transformer.transformer_blocks.0.attn2.to_k.weight"], (8, 8))
    assert chosen(shapes, "transformer-ca") == {blocks[1]}
    wan = dict.fromkeys(f"transformer.blocks.0.attn{number}.to_k.weight" for number in (1, 2))
    assert chosen(dict.fromkeys(wan, (8, 8)), "transformer-ca") == {"transformer.blocks.0.attn2.to_k.weight"}


EXPERTS = {
    f"{slot}.blocks.{block}.{layer}.weight": (8, 8)
    for slot in ("transformer", "transformer_2")
    for block in (0, 1, 10)
    for layer in ("attn1.to_q", "ffn.net.2")
} | {"transformer.proj_out.weight": (8, 8)}


def test_a_word_for_a_component_stands_for_all_of_its_kind_and_its_own_name_for_it_alone() -> None:
    assert chosen(EXPERTS, "transformer") == {*EXPERTS}
    assert chosen(EXPERTS, "transformer_2") == {name for name in EXPERTS if name.startswith("transformer_2.")}
    assert chosen(EXPERTS, "Transformer_2-attn") == {
        name for name in EXPERTS if name.startswith("transformer_2.") and "attn1" in name
    }
    assert len(chosen(EXPERTS, "transformer-mlp")) == 6
    model = {"model.layers.0.mlp.up_proj.weight": (8, 8), "model.lm_head.weight": (8, 8), "vae.a.weight": (3,)}
    assert chosen(model, "model-mlp") == {"model.layers.0.mlp.up_proj.weight"}
    assert chosen(model, "vae") == {"vae.a.weight"}


def test_blocks_are_named_by_number_in_one_component_or_all() -> None:
    assert {name.split(".")[2] for name in chosen(EXPERTS, "block.1")} == {"1"}
    assert len(chosen(EXPERTS, "block.1")) == 4
    assert {name.split(".")[2] for name in chosen(EXPERTS, "transformer_2-block.1-10")} == {"1", "10"}
    assert chosen(EXPERTS, "transformer-block.0") == chosen(EXPERTS, "block.0")
    assert not chosen(EXPERTS, "block.2")


LONG = {  # 255 characters, and one more
    "attn": ("attn".ljust(255, "_"), "attn".ljust(256, "_")),
    "attn-kv": ("k".rjust(255, "_"), "k".rjust(256, "_")),
    "mlp": ("_mlp".rjust(255, "a"), "_mlp".rjust(256, "a")),
}


@pytest.mark.parametrize("part", LONG)
def test_a_module_that_no_model_would_have_is_no_part(part: str) -> None:
    around = "attn." if part == "attn-kv" else "0." if part == "mlp" else ""
    fits, longer = (f"model.{around}{module}.weight" for module in LONG[part])
    word = part.removeprefix("attn-")
    assert (getattr(part_of(fits), word), getattr(part_of(longer), word)) == (True, False)


def test_the_number_of_a_block_has_at_most_nine_digits() -> None:
    found = [part_of(f"model.layers.{'1' * digits}.weight").block for digits in (9, 10, 5000)]
    assert found == [111_111_111, None, None]


@pytest.mark.parametrize(
    "selector", ["unet-block", "vae-attn", "transformer_3", "block.-1", "block.1-", "text-4d-attn"]
)
def test_words_that_stand_for_nothing_are_unknown(selector: str) -> None:
    with pytest.raises(SelectionError, match="is neither a subset nor a parameter here"):
        match(EXPERTS, [selector])
