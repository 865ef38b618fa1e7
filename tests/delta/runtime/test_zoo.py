"""Every denoiser, autoencoder and language model that the installed libraries can build computes with W + ΔW."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.live import double_copy
from support.models import live_zero, named
from support.zoo.member import Member
from support.zoo.registry import MEMBERS, REFUSED, UNBUILT, encoders, exported
from support.zoo.trial import build, delta_of, off, refused, run, run_wide

from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.format.stacked import slice_of
from svdiff_delta.runtime import attach

MODES: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}

DOZEN = (
    "Qwen3_5ForCausalLM",
    "HunyuanDiT2DModel",
    "NemotronForCausalLM",
    "GemmaForCausalLM",
    "AutoencoderKLWan",
    "AutoencoderKLMagvit",
    "UNetMotionModel",
    "FluxTransformer2DModel",
    "SD3Transformer2DModel",
    "ZImageTransformer2DModel",
    "QwenImageTransformer2DModel",
    "MMAudioVAE",
)
"""What a plain test run takes: one of every mechanism."""

STACKED = ("NucleusMoEImageTransformer2DModel",)
"""A denoiser whose experts are stacked; those of language models have tests of their own."""

HALF = tuple(name for name in DOZEN if name != "MMAudioVAE")
"""Those of them that run in bfloat16; the other one takes a Fourier transform, which has none on a CPU."""

# Libraries warn of their own deprecations and of what is not installed.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_every_class_of_the_libraries_is_tried_or_named() -> None:
    known = {name.split()[0] for name in MEMBERS} | set(UNBUILT)
    assert {*exported(), *encoders()} - known == set()
    assert set(UNBUILT) - {*exported(), *encoders()} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in (*DOZEN, *STACKED)])
def test_a_class_computes_with_the_shifted_weights(name: str) -> None:
    right(name, MEMBERS[name])


@pytest.mark.parametrize("name", DOZEN)
def test_one_of_the_dozen_computes_with_the_shifted_weights(name: str) -> None:
    right(name, MEMBERS[name])


@pytest.mark.parametrize("name", STACKED)
def test_stacked_experts_compute_with_the_shifted_weights(name: str) -> None:
    """The check compares what the experts' layer reads, too."""
    model = build(name, MEMBERS[name])
    assert any(slice_of(key) for key in delta_of(model, MEMBERS[name]))
    right(name, MEMBERS[name])


def right(name: str, member: Member) -> None:
    """Live, exact and fused, checked: what W + ΔW computes; afterwards: what was there, bit for bit."""
    with torch.no_grad():
        model = build(name, member)
        denied = refused(model)
        assert bool(denied) == (name in REFUSED)
        delta = delta_of(model, member, on_request=name == "GemmaForCausalLM")
        if denied:
            for each in denied:
                refuses(model, each)
            if not len(delta):
                return
        before, state = run(model, member), {key: value.clone() for key, value in model.state_dict().items()}
        moved = double_copy(model, delta)
        rounded, expected = baked(model, moved, member), run_wide(moved, member)
        # What rounding of every product and norm adds up to is up to 1.4e-5 of what δ changes, except where that is
        # hardly more than the output's last bits: there a baked model is the measure.
        limit = max(1e-4, 2 * off(rounded, expected, before))
        for options in MODES.values():
            with attach(model, delta, check=True, **options):
                assert off(run(model, member), expected, before) < limit
            after = model.state_dict()
            assert after.keys() == state.keys()
            assert all(torch.equal(after[key], state[key]) for key in state)
            assert torch.equal(run(model, member), before)
        assert off(before, expected, torch.zeros(())) > 1e-4


def refuses(model: Any, name: str) -> None:
    """A delta that names a weight that is no parameter is refused, and the layer named."""
    zero = live_zero(named(torch.nn.Linear(2, 2)))
    (other,) = zero
    wrong = Delta({name: zero[other]}, Metadata(zero.metadata.base, {name: zero.metadata.parameters[other]}))
    with pytest.raises(AttachError, match=rf"{name}: .*holds no parameter `weight` of its own"):
        attach(model, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.unreached])
def test_a_layer_that_the_forward_does_not_reach_is_named(name: str) -> None:
    member = MEMBERS[name]
    if name == "HunyuanVideo15Transformer3DModel":  # left out for its size
        return
    model = build(name, member)
    missed = set(delta_of(model, replace(member, unreached={}))) - set(delta_of(model, member))
    with attach(model, delta_of(model, replace(member, unreached={})), check=True):
        with pytest.raises(AttachError, match="has neither called this layer nor read its weight") as caught:
            run(model, member)
        assert str(caught.value).split(":")[0] in missed
        assert f"({len(missed)} of " in str(caught.value)


@pytest.mark.parametrize("name", HALF)
def test_in_half_precision_it_is_as_near_as_a_baked_model(name: str) -> None:
    member = MEMBERS[name]
    with torch.no_grad():
        model = build(name, member).bfloat16()
        delta = delta_of(model, member, size=0.3)
        before, moved = run(model, member), double_copy(model, delta)
        rounded, expected = baked(model, moved, member), run_wide(moved, member)
        with attach(model, delta, check=True):
            found = run(model, member)
    assert (found.double() - expected.double()).norm() <= 2 * (rounded.double() - expected.double()).norm()
    assert off(before, expected, torch.zeros(())) > 1e-3


def baked(model: Any, moved: Any, member: Member) -> torch.Tensor:
    """What the model computes whose weights are W + ΔW, rounded once to their own dtype."""
    return run(copy.deepcopy(moved).to(next(model.parameters()).dtype), member)


@pytest.mark.parametrize("name", DOZEN)
def test_gradients_are_those_of_the_singular_values(name: str) -> None:
    member = MEMBERS[name]
    model = build(name, member)
    delta = delta_of(model, member)
    start = Delta({key: 0 * delta[key] for key in delta}, delta.metadata)
    expected = gradients(model, member, delta)
    largest = max(float(grad.norm()) for grad in expected.values())
    with attach(model, start, trainable=True) as handle:
        run(model, member).square().sum().backward()
        for key, value in handle.parameters():
            # None or 0 where nothing depends on it: what the last block makes of the text is not used.
            grad = torch.zeros(()) if value.grad is None else value.grad.double()
            assert (grad - expected[key]).norm() < 1e-4 * expected[key].norm() + 1e-7 * largest, key


def gradients(model: Any, member: Member, delta: Delta) -> dict[str, torch.Tensor]:
    """uᵢᵀ G vᵢ in float64, G being the gradient of the weight."""
    twin = copy.deepcopy(model).requires_grad_(True)
    run(twin.double() if member.wide else twin, member).square().sum().backward()
    found = {}
    for name, parameter in delta.metadata.parameters.items():
        weight = twin.get_parameter(name.removeprefix("model."))
        grad = (torch.zeros_like(weight) if weight.grad is None else weight.grad).double()
        if parameter.kind == "elementwise":
            found[name] = grad.flatten()
            continue
        matrix, grad = (value.movedim(parameter.axis, 0).flatten(1) for value in (weight.data.double(), grad))
        U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
        found[name] = ((U.T @ grad) * Vt).sum(1)
    return found
