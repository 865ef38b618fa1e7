"""Blocks of a model: each has a selector that names its parameters and no others, in the order of the forward pass."""

from __future__ import annotations

import pytest
from support.sd15 import sd15_delta

from svdiff_delta.ops.blocks import Block, block_at, blocks_of
from svdiff_delta.selectors.match import match

OTHERS = {
    "text_encoder.text_model.embeddings.token_embedding.weight": (9, 4),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": (9, 4),
    "text_encoder.text_model.encoder.layers.10.mlp.fc1.weight": (9, 4),
    "text_encoder.text_model.encoder.layers.2.mlp.fc1.weight": (9, 4),
    "text_encoder.text_model.final_layer_norm.weight": (9,),
    "transformer.transformer_blocks.3.attn.to_q.weight": (9, 4),
    "transformer.single_transformer_blocks.3.attn.to_q.weight": (9, 4),
    "transformer.x_embedder.weight": (9, 4),
    "transformer.proj_out.weight": (9, 4),
    "model.model.layers.3.mlp.experts.gate_up_proj[7]": (9, 4),
}


def test_the_selector_of_a_block_names_its_parameters_and_no_others() -> None:
    shapes = {name: item.shape for name, item in sd15_delta().metadata.parameters.items()} | OTHERS
    blocks = blocks_of(shapes)
    assert sorted(name for names in blocks.values() for name in names) == sorted(shapes)
    for block, names in blocks.items():
        assert match(shapes, [block.selector]) == sorted(names)


def test_blocks_of_a_unet_stand_in_the_order_of_the_forward_pass() -> None:
    labels = [block.label for block in blocks_of(sd15_delta())]
    levels = [f"down.{level}" for level in range(4)], [f"up.{level}" for level in range(4)]
    assert labels == ["conv_in", "time_embedding", *levels[0], "mid", *levels[1], "conv_norm_out", "conv_out"]


def test_numbers_of_blocks_are_sorted_as_numbers() -> None:
    found = [block.label for block in blocks_of(OTHERS) if block.component == "text_encoder"]
    assert [label.rpartition(".")[2] for label in found if "layers" in label] == ["0", "2", "10"]
    transformer = [block.label for block in blocks_of(OTHERS) if block.component == "transformer"]
    assert (transformer[0], transformer[-1]) == ("x_embedder", "proj_out")


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("unet.down_blocks.1.attentions.0.proj_in.weight", Block("unet", "down.1", "down.1")),
        ("unet.mid_block.resnets.0.conv1.weight", Block("unet", "mid", "mid")),
        ("unet.conv_in.weight", Block("unet", "conv_in", "unet.conv_in.*")),
        (
            "unet_2.down_blocks.1.conv.weight",
            Block("unet_2", "down_blocks.1", "unet_2.down_blocks.1.*"),
        ),
    ],
)
def test_a_block_has_a_short_name(name: str, block: Block) -> None:
    assert block_at(name) == block
