"""Inputs of any layout, rank and dtype that a layer takes by itself: each form gives what its own forward would."""

from __future__ import annotations

import copy

import pytest
import torch
from support.live import double_copy, relative
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta import attach
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime.forms.choice import FormName

POINTWISE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "wide": (nn.Conv2d(12, 8, 1), (12, 4, 4)),
    "tall": (nn.Conv2d(8, 12, 1), (8, 4, 4)),
    "as many channels as rows": (nn.Conv2d(8, 8, 1), (8, 8, 8)),
    "one dimension": (nn.Conv1d(12, 8, 1), (12, 7)),
    "three dimensions": (nn.Conv3d(8, 6, 1, bias=False), (8, 3, 3, 3)),
}
FORMS: tuple[FormName, ...] = ("resident", "additive", "whole")


def made(layer: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Delta]:
    model = named(copy.deepcopy(layer)).bfloat16().to(dtype)
    return model, random_delta(live_zero(model), size=0.3)


def layouts(x: Tensor) -> list[Tensor]:
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    return [x, x[:1], turned] + ([x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", POINTWISE)
def test_a_pointwise_convolution_lays_its_output_out_as_without_a_delta(
    name: str, form: FormName, dtype: torch.dtype
) -> None:
    """Models take views of it: `hidden.view(batch, channels, -1)`."""
    layer, shape = POINTWISE[name]
    model, delta = made(layer, dtype)
    for x in layouts(normal(3, *shape).to(dtype)):
        plain = model(x)
        with attach(model, delta, form=form):
            assert model(x).stride() == plain.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", POINTWISE)
def test_one_sample_without_its_dimension_is_that_sample(name: str, form: FormName, dtype: torch.dtype) -> None:
    layer, shape = POINTWISE[name]
    model, delta = made(layer, dtype)
    x = normal(*shape).to(dtype)
    expected = torch.as_tensor(double_copy(model, delta)(x.double()))
    with attach(model, delta, form=form):
        assert relative(model(x), expected) < {2: 1e-2, 4: 1e-5}[dtype.itemsize]


@pytest.mark.parametrize(
    "layer", [nn.Linear(16, 8), nn.Conv2d(4, 6, 3), nn.ConvTranspose1d(6, 4, 3, stride=2)], ids=lambda layer: str(layer)
)
def test_many_positions_in_float64_are_computed_in_float64(layer: nn.Module) -> None:
    """In factored form, which puts W + ΔW together for them."""
    shape = {nn.Linear: (16,), nn.Conv2d: (4, 30, 30), nn.ConvTranspose1d: (6, 300)}[type(layer)]
    model, delta = made(layer, torch.float64)
    x = normal(300, *shape).double() if len(shape) == 1 else normal(2, *shape).double()
    expected = torch.as_tensor(double_copy(model, delta)(x))
    with torch.no_grad(), attach(model, delta, form="factored"):
        found = model(x)
    assert found.dtype == torch.float64
    assert relative(found, expected) < 1e-5
