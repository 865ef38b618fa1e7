"""What diffusers does to a model beside a delta, on models of many kinds; and forwards that write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models import live_zero, named, random_delta
from support.weights import normal
from support.zoo.registry import MEMBERS
from support.zoo.trial import build, delta_of, off, run, truth
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.runtime import attach

CPU = torch.device("cpu")
OFFLOADED = ["AuraFlowTransformer2DModel", "CogView4Transformer2DModel", "AutoencoderKLQwenImage"]
FUSED = ["FluxTransformer2DModel", "QwenImageTransformer2DModel", "LTXVideoTransformer3DModel"]

# Libraries warn of their own deprecations.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def offload(model: Any) -> None:
    model.enable_group_offload(CPU, CPU, offload_type="leaf_level")


@pytest.mark.parametrize("first", ["delta", "offload"])
@pytest.mark.parametrize("name", OFFLOADED)
def test_group_offload_goes_with_a_delta_in_both_orders(name: str, first: str) -> None:
    member = MEMBERS[name]
    with torch.no_grad():
        model = build(name, member)
        delta, before = delta_of(model, member), run(model, member)
        expected = truth(model, member, delta)
        if first == "offload":
            offload(model)
        with attach(model, delta, check=True):
            if first == "delta":
                offload(model)
            assert off(run(model, member), expected, before) < 1e-4
        assert torch.equal(run(model, member), before)


@pytest.mark.parametrize("name", ["CogView4Transformer2DModel", "PixArtTransformer2DModel"])
def test_layerwise_casting_after_a_delta_rounds_the_base_and_keeps_the_delta(name: str) -> None:
    member = MEMBERS[name]
    with torch.no_grad():
        model = build(name, member)
        delta, plain = delta_of(model, member, size=0.3), build(name, member)
        plain.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        before = run(plain, member)
        full = truth(model, member, delta) - run(model, member).double()
        with attach(model, delta, check=True):
            model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
            change = run(model, member).double() - before.double()
        # The rounded base answers a little differently to the same change.
        assert (change - full).norm() < 0.25 * full.norm()
        assert torch.equal(run(model, member), before)


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections_are_refused_in_both_orders(name: str) -> None:
    member = MEMBERS[name]
    with torch.no_grad():
        model: Any = build(name, member)
        delta, before = delta_of(model, member), run(model, member)
        with attach(model, delta), pytest.raises(AttachError, match="which projections that are fused now would"):
            fuse(model)
        assert torch.equal(run(model, member), before)
        fuse(model)
        with pytest.raises(AttachError, match="was copied into the fused projection"):
            attach(model, delta)


def fuse(model: Any) -> None:
    """What `fuse_qkv_projections` does, which not every class of these passes on."""
    for module in model.modules():
        if hasattr(module, "fuse_projections"):
            module.fuse_projections()


class Scaled(nn.Linear):
    """Takes arguments by names that the library uses itself."""

    def forward(self, hidden: Tensor, gain: float = 1.0, module: float = 0.0, x: float = 0.0) -> Tensor:
        return nn.functional.linear(hidden, self.weight * gain, self.bias) + module + x


@pytest.mark.parametrize("named_input", [False, True])
def test_a_layer_may_take_arguments_of_any_name(named_input: bool) -> None:
    model, x = named(Scaled(6, 6)), normal(2, 6)
    others = {"gain": 3.0, "module": 1.0, "x": 2.0}
    delta = random_delta(live_zero(model), size=0.3)
    plain = model.layer(x, **others)
    with attach(model, delta, mode="fused"):
        expected = model.layer(x, **others)
    with attach(model, delta):
        found = model.layer(hidden=x, **others) if named_input else model.layer(x, **others)
    assert off(found, expected, plain) < 1e-5


LAYERS: dict[str, tuple[nn.Module, str, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 6), "input", (2, 6)),
    "convolution": (nn.Conv2d(4, 4, 3), "input", (2, 4, 5, 5)),
    "depthwise convolution": (nn.Conv1d(4, 4, 3, groups=4), "input", (2, 4, 5)),
    "transposed convolution": (nn.ConvTranspose1d(4, 4, 3), "input", (2, 4, 5)),
    "layer norm": (nn.LayerNorm(6), "input", (2, 6)),
    "group norm": (nn.GroupNorm(2, 4), "input", (2, 4, 5)),
    "RMS norm": (nn.RMSNorm(6), "x", (2, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_called_by_keyword(kind: str) -> None:
    layer, word, shape = LAYERS[kind]
    model, x = named(layer), normal(*shape)
    with attach(model, random_delta(live_zero(model), size=0.3)):
        assert torch.equal(model.layer(**{word: x}), model.layer(x))


class Remembering(nn.Conv1d):
    """Pads with the end of what it saw before, as causal convolutions of video autoencoders do."""

    past: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        before = torch.zeros_like(hidden[..., :2]) if self.past is None else self.past
        self.past = hidden[..., -2:].clone()
        return super().forward(torch.cat([before, hidden], -1))


class Filling(nn.Linear):
    """Writes its output into what it is given."""

    def forward(self, hidden: Tensor, out: Tensor) -> Tensor:
        out[...] = super().forward(hidden)
        return out


@pytest.mark.parametrize("check", [False, True])
def test_what_a_layer_keeps_from_call_to_call_stays_kept(check: bool) -> None:
    model, x = named(Remembering(4, 4, 3)), normal(2, 4, 5)
    delta = random_delta(live_zero(model), size=0.3)
    with attach(model, delta, mode="fused"):
        expected = [model(x), model(x)]
    model.layer.past = None
    with attach(model, delta, check=check):
        found = [model(x), model(x)]
    assert all(off(a, b, torch.zeros(())) < 1e-5 for a, b in zip(found, expected, strict=True))
    assert off(found[1], expected[0], torch.zeros(())) > 0.01


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_a_check_leaves_what_a_layer_has_written_as_it_was(scale: float) -> None:
    model, x = named(Filling(6, 6)), normal(2, 6)
    delta = random_delta(live_zero(model), size=scale)
    with attach(model, delta):
        expected = model.layer(x, torch.empty(2, 6))
    out = torch.empty(2, 6)
    with attach(model, delta, check=True):
        assert model.layer(x, out) is out
        assert torch.equal(out, expected)


def test_samples_with_a_delta_each_do_not_read_what_is_kept_of_one_another() -> None:
    model, x = named(Remembering(4, 4, 3)), normal(2, 4, 5)
    zero = live_zero(model)
    deltas = {"one": random_delta(zero, seed=1), "two": random_delta(zero, seed=2)}
    refusal = pytest.raises(InputError, match="keeps `past` from call to call")
    with attach(model, deltas) as handle, handle.per_sample(["one", "two"]), refusal:
        model(x)


def test_samples_with_a_delta_each_write_into_their_own_part() -> None:
    model, x = named(Filling(6, 6)), normal(2, 6)
    zero = live_zero(model)
    deltas = {"one": random_delta(zero, size=0.3, seed=1), "two": random_delta(zero, size=0.3, seed=2)}
    expected = []
    for index, delta in enumerate(deltas.values()):
        with attach(model, delta):
            expected.append(model.layer(x[index : index + 1], torch.empty(1, 6)))
    out = torch.empty(2, 6)
    with attach(model, deltas) as handle, handle.per_sample(["one", "two"]):
        result = model.layer(x, out)
    assert off(result, torch.cat(expected), torch.zeros(())) < 1e-6
    assert off(out, torch.cat(expected), torch.zeros(())) < 1e-6


@pytest.mark.parametrize("name", ["CogView4Transformer2DModel", "PRXTransformer2DModel", "LTXVideoTransformer3DModel"])
def test_samples_of_other_models_have_a_delta_each(name: str) -> None:
    member = MEMBERS[name]
    with torch.no_grad():
        model = build(name, member)
        deltas = {"one": delta_of(model, member), "two": delta_of(model, member, size=0.2)}
        before = run(model, member)
        expected = [truth(model, member, delta) for delta in deltas.values()]
        twice = replace(member, inputs=tree_map(double, dict(member.inputs)))
        with attach(model, deltas) as handle, handle.per_sample(["one", "two"]):
            found = run(model, twice).unflatten(0, (2, -1))
    for row, right in zip(found, expected, strict=True):
        assert off(row, right, before) < 1e-4


def double(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.shape[0] == 1 else value
