"""LoRA of grouped convolutions in PEFT's shape, read back."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.weights import normal
from torch import nn

from svdiff_delta.conversion.lazy_tensors import Ref, open_tensors
from svdiff_delta.conversion.weight_updates import LowRank
from svdiff_delta.errors import TensorError


def of_two(folder: Path, up: torch.Tensor, down: torch.Tensor) -> LowRank:
    save_file({"up": up, "down": down}, folder / "x.safetensors")
    file = open_tensors(folder / "x.safetensors")
    return LowRank(Ref(file, "up"), Ref(file, "down"), scale=0.5)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_factors_of_groups_are_what_peft_s_layers_do(groups: int, tmp_path: Path) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    config = LoraConfig(r=8, lora_alpha=4, target_modules=["layer"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it cannot merge; its forward is what counts
        model: Any = get_peft_model(nn.Sequential(OrderedDict(layer=layer)), config)
    wrapped = model.base_model.model.layer
    down, inside = wrapped.lora_A["default"].weight, 8 // groups
    with torch.no_grad():  # each row keeps the inputs of its own group
        for row in range(8):
            group = row // (8 // groups)
            kept = down[row, group * inside : (group + 1) * inside].clone()
            down[row] = 0
            down[row, group * inside : (group + 1) * inside] = kept
        x = normal(1, 8, 5, 5)
        expected = wrapped(x) - layer(x)
    update = of_two(tmp_path, wrapped.lora_B["default"].weight.detach().contiguous(), down.detach().contiguous())
    update.check()
    assert update.groups == groups
    assert update.misfit(tuple(layer.weight.shape)) == ""
    change = update.change(layer.weight)
    found = nn.functional.conv2d(x.double(), change, padding=1, groups=groups)
    np.testing.assert_allclose(found.numpy(), expected.double().numpy(), atol=1e-5)


def test_factors_that_reach_across_groups_are_refused(tmp_path: Path) -> None:
    # Four groups of two inputs each, and every row sees all eight.
    update = of_two(tmp_path, normal(8, 1, 1, 1), normal(4, 8, 3, 3))
    update.check()
    with pytest.raises(TensorError, match="reaches across the groups of its convolution: leave this layer out"):
        update.change(normal(8, 2, 3, 3))


def test_factors_of_a_plain_convolution_have_one_group(tmp_path: Path) -> None:
    up, down = normal(8, 4, 1, 1), normal(4, 8, 3, 3)
    change = of_two(tmp_path, up, down).change(normal(8, 8, 3, 3))
    expected = 0.5 * torch.einsum("or,rikl->oikl", up.double()[..., 0, 0], down.double())
    np.testing.assert_allclose(change.numpy(), expected.numpy(), atol=1e-12)
    assert load_file(tmp_path / "x.safetensors")["up"].shape == (8, 4, 1, 1)
