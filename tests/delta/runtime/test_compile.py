"""torch.compile: a compiled model shows swaps and scales without being compiled again."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from support.live import CASES, Case, built, relative
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.runtime import attach

pytestmark = [
    pytest.mark.slow,
    # The compiler's own modules bring it, when they are imported.
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script_method.*:DeprecationWarning"),
    # Dynamo (torch 2.13) makes an instance of each function with a gradient of its own that it traces.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # Of diffusers' own functions, in half precision.
    pytest.mark.filterwarnings(r"ignore:(?s)Dynamo detected a call to.*lru_cache.*site-packages.diffusers:UserWarning"),
]


def _one_block() -> nn.Module:
    """A UNet with one layer of each class that it has: compiling takes about as long as there are layers."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


class _Layers(nn.Module):
    """The UNet's kinds of layers once, in its own blocks: a third of what it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.time = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(1, 16)
        self.resnet = ResnetBlock2D(in_channels=8, out_channels=4, temb_channels=16, groups=4)
        self.attention = BasicTransformerBlock(4, 2, 2, cross_attention_dim=12)

    def forward(self, sample: Tensor, timestep: int, encoder_hidden_states: Tensor) -> UNet2DConditionOutput:
        hidden = self.resnet(self.conv_in(sample), self.time(sample.new_full((1, 1), timestep / 1000)))
        rows = hidden.flatten(2).transpose(1, 2)
        return UNet2DConditionOutput(self.attention(rows, encoder_hidden_states=encoder_hidden_states))


MODELS = {
    **CASES,
    "UNet": Case(_one_block, CASES["UNet"].inputs, "sample"),
    "a UNet's layers": Case(_Layers, CASES["UNet"].inputs, "sample"),
}
CHOSEN: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("UNet", {}, torch.float32),
    ("Flux", {"exact": True}, torch.float32),
    ("CLIP's text encoder", {"mode": "fused"}, torch.float32),
    ("a UNet's layers", {"form": "resident"}, torch.float32),
    ("a UNet's layers", {}, torch.bfloat16),
    ("Flux", {"form": "additive"}, torch.bfloat16),
]
EXACT = 1e-5
"""Of the output, up to which a compiled model in float32 computes what it does by itself."""
OWN = 2.0
"""In half precision, times what compiling changes of the model without a delta: it rounds less often.

Of Flux' output 2.4 % without a delta, as much as the model by itself is off from float64, and 3.0 to 3.8 % with one."""


def of_compiling(model: nn.Module, inputs: dict[str, Any], output: str) -> float:
    """Return what compiling alone changes of a model's output."""
    torch.compiler.reset()
    with torch.no_grad():
        found, expected = (getattr(each(**inputs), output) for each in (torch.compile(model), model))
    return relative(found, expected)


@pytest.mark.parametrize(("name", "options", "dtype"), CHOSEN)
def test_swapping_and_scaling_do_not_compile_again(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = built(MODELS[name]).to(dtype)
    inputs = {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in MODELS[name].inputs(2).items()
    }
    limit = EXACT if dtype == torch.float32 else OWN * of_compiling(model, inputs, MODELS[name].output)
    dog, cat = (random_delta(live_zero(model), size=0.3, seed=seed) for seed in (1, 2))  # of weights in this dtype
    torch.compiler.reset()
    with attach(model, {"dog": dog, "cat": cat}, **options) as handle, torch.no_grad():
        compiled = torch.compile(model)

        def error() -> float:
            found, expected = (getattr(each(**inputs), MODELS[name].output) for each in (compiled, model))
            return relative(found, expected)

        assert error() < limit
        with torch._dynamo.config.patch(error_on_recompile=True):
            for change in (
                lambda: handle.set_adapters(["dog", "cat"], [0.8, 0.5]),
                lambda: handle.set_scale(0.5),
                lambda: handle.set_adapters("dog"),
                lambda: handle.swap(cat),
                handle.disable,
                handle.enable,
            ):
                change()
                assert error() < limit


def test_a_compiled_model_takes_a_delta_for_each_sample() -> None:
    model, x = named(nn.Linear(12, 8)), normal(4, 12)
    zero = live_zero(model)
    deltas = {name: random_delta(zero, size=0.3, seed=seed) for seed, name in enumerate(["dog", "cat"])}
    torch.compiler.reset()
    with attach(model, deltas) as handle, torch.no_grad():
        compiled = torch.compile(model)
        together = compiled(x)
        with handle.per_sample(["dog", "cat"]):
            assert relative(compiled(x), model(x)) < 1e-6
            assert relative(compiled(x), together) > 0.01
        assert relative(compiled(x), together) < 1e-6
