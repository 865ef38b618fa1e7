"""The layout that the light tests compute in plain Python is the one that diffusers builds."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from support.sd15 import LAYOUT

from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.format.parameter import Kind, Parameter

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
}


def sd15() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(SD15)


def test_names_and_shapes_are_those_of_diffusers() -> None:
    model = sd15()
    weights = model.state_dict()
    found = {f"unet.{key}": tuple(weights[key].shape) for key, _, _ in shiftable(model)}
    assert dict(sorted(found.items())) == LAYOUT


def test_only_one_dimensional_weights_are_elementwise_and_every_axis_is_the_first() -> None:
    found = {(kind, axis, len(LAYOUT[f"unet.{key}"]) == 1) for key, kind, axis in shiftable(sd15())}
    assert found == {("elementwise", 0, True), ("spectral", 0, False)}


def test_the_numbers_are_those_of_table_1() -> None:
    found = {}
    for dims in (1, 2, 4):
        kind: Kind = "elementwise" if dims == 1 else "spectral"
        shapes = [shape for shape in LAYOUT.values() if len(shape) == dims]
        found[dims] = len(shapes), sum(Parameter(shape, kind, 0, "F16", "").size for shape in shapes)
    assert found == {1: (109, 100_160), 2: (184, 140_416), 4: (98, 82_280)}
