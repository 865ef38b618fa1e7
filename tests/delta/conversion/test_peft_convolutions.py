"""What PEFT requires of a convolution, beside a rank that its groups divide; others are listed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.weights import normal
from torch import nn

from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.convolutions import Convolutions


class Own(nn.Conv2d):
    """A convolution that PEFT cannot build one of."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)


class Renamed(nn.Conv2d):
    """One that it can."""


LAYERS = [
    (nn.Conv2d(4, 4, 3, stride=2, padding=1), ""),
    (nn.Conv2d(4, 4, 3, padding="same"), ""),
    (Renamed(4, 4, 3, padding=1), ""),
    (nn.Conv2d(4, 4, 3, padding=2, dilation=2), "is a dilated convolution, and PEFT's layers are not dilated"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "is a convolution with circular padding, and"),
    (Own(4), "is a Own, which PEFT cannot build"),
]


@pytest.mark.parametrize(("layer", "reason"), LAYERS)
def test_a_convolution_beside_which_peft_s_would_do_something_else_is_listed(layer: nn.Conv2d, reason: str) -> None:
    component = SimpleNamespace(class_name="", skeleton=nn.Sequential(layer), stored_class=lambda key: key)
    found = Convolutions(cast("Base", SimpleNamespace(components={"unet": component}))).unlike("unet.0.weight")
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(("layer", "reason"), LAYERS)
def test_and_that_is_what_peft_does(layer: nn.Conv2d, reason: str) -> None:
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
    inputs = normal(1, 4, 8, 8)
    weight = layer.weight.detach().clone()
    try:
        model: Any = inject_adapter_in_model(config, nn.Sequential(layer))
        wrapped: Any = model[0]
        with torch.no_grad():
            live = wrapped(inputs)
            change = wrapped.get_delta_weight("default")
            layer.weight.copy_(weight + change)
            merged = layer(inputs)
        same = torch.allclose(live, merged, atol=1e-5)
    except (TypeError, RuntimeError):
        same = False
    assert same == (not reason)
