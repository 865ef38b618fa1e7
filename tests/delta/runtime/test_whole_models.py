"""What is done to whole models while a delta is on them: saved, copied, loaded; and under inference mode."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.live import delta_of, run, tiny
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import nn

from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import attach

X = normal(4, 6, 12)
FORMS: dict[str, dict[str, Any]] = {
    "live": {},
    "exact": {"exact": True},
    "fused": {"mode": "fused"},
    "trained": {"trainable": True},
}


def model_of_three() -> Any:
    return nn.Sequential(named(nn.Linear(12, 8)), named(nn.Conv1d(6, 5, 1)), named(nn.LayerNorm(8)))


def delta_for(model: nn.Module) -> Delta:
    return random_delta(live_zero(model), size=0.3)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FORMS[request.param]


WAYS: dict[str, Callable[[Any], object]] = {
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "torch.save of a layer": lambda model: torch.save(model[0].layer, io.BytesIO()),
    "pickle": pickle.dumps,
    "pickle of a list": lambda model: pickle.dumps([model]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_with_a_delta_cannot_be_pickled_and_says_why(form: dict[str, Any], way: str) -> None:
    model = model_of_three()
    refused = pytest.raises(AttachError, match="cannot be pickled or saved whole while a delta is on it: detach")
    with attach(model, delta_for(model), **form), refused:
        WAYS[way](model)
    WAYS[way](model)


def test_a_model_s_state_dict_can_be_saved_with_a_delta_on_it() -> None:
    model = model_of_three()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stream = io.BytesIO()
    with attach(model, delta_for(model)):
        torch.save(model.state_dict(), stream)
    stream.seek(0)
    found = torch.load(stream, weights_only=True)
    assert all(torch.equal(found[key], value) for key, value in before.items())


def test_a_copy_of_a_fused_model_is_a_model_of_its_own() -> None:
    model = tiny("UNet")
    with attach(model, delta_of("UNet"), mode="fused"):
        expected = run(model, "UNet")
        twin = copy.deepcopy(model)
    assert torch.equal(run(twin, "UNet"), expected)
    again = pickle.loads(pickle.dumps(twin))
    assert torch.equal(run(again, "UNet"), expected)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(run(twin, "UNet"), run(model, "UNet"))
    with attach(twin, delta_of("UNet"), mode="fused"):
        assert torch.equal(run(twin, "UNet"), expected)
    twin.fuse_qkv_projections()


def test_a_copy_of_a_live_model_has_the_delta_to_itself() -> None:
    model = tiny("UNet")
    with attach(model, delta_of("UNet")) as handle:
        expected = run(model, "UNet")
        twin = copy.deepcopy(model)
        handle.disable()
        with pytest.raises(AttachError, match="has a delta on it already"):
            attach(twin, delta_of("UNet"))
    assert torch.equal(run(twin, "UNet"), expected)
    original = model.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in twin.state_dict().items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_weights_are_not_loaded_while_a_delta_is_on_them(form: dict[str, Any], assign: bool, strict: bool) -> None:
    model = model_of_three()
    other = {key: value + 1 for key, value in model.state_dict().items()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with attach(model, delta_for(model), **form):
        expected = model(X)
        with pytest.raises(
            AttachError, match=r"model\.0\.layer\.weight: a weight cannot be loaded while a delta is on"
        ):
            model.load_state_dict(other, strict=strict, assign=assign)
        assert torch.equal(model(X), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.load_state_dict(other, strict=strict, assign=assign)
    assert all(torch.equal(value, other[key]) for key, value in model.state_dict().items())


def test_what_is_not_shifted_may_be_loaded() -> None:
    model = model_of_three()
    with attach(model, delta_for(model)):
        model.load_state_dict({"0.layer.bias": torch.ones(8)}, strict=False)
    assert torch.equal(model[0].layer.bias, torch.ones(8))


def test_the_weights_that_are_there_may_be_loaded() -> None:
    model = model_of_three()
    with attach(model, delta_for(model), exact=True):
        expected = model(X)
        model.load_state_dict(model.state_dict())
        assert torch.equal(model(X), expected)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("where", ["attach", "swap", "detach", "all"])
@pytest.mark.parametrize("name", ["live", "exact", "fused"])
def test_inference_mode_leaves_ordinary_tensors(tmp_path: Any, name: str, where: str, stored: bool) -> None:
    model = model_of_three()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    delta, plain = delta_for(model), model(X)

    def mode(step: str) -> Any:
        return torch.inference_mode() if where in (step, "all") else nullcontext()

    with mode("attach"):
        handle = attach(model, delta, base=open_base(tmp_path / "model.safetensors") if stored else None, **FORMS[name])
    expected = model(X)
    with mode("swap"):
        handle.set_scale(0.5)
        handle.swap(delta)
    handle.set_scale(1.0)
    assert torch.equal(model(X), expected)
    x = X.clone().requires_grad_()
    model(x).square().sum().backward()  # what is kept for gradients is ordinary too
    assert bool(torch.as_tensor(x.grad).any())
    with mode("detach"):
        handle.detach()
    assert torch.equal(model(X), plain)
    assert not any(value.is_inference() for value in (*model.parameters(), *model.buffers()))
    model.requires_grad_(True)
    model(X).square().sum().backward()
    assert all(bool(torch.as_tensor(value.grad).any()) for value in model.parameters())


def test_a_delta_that_was_attached_in_inference_mode_is_trained() -> None:
    model = model_of_three()
    with torch.inference_mode():
        handle = attach(model, delta_for(model), trainable=True)
    model(X).square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for _, value in handle.parameters())
    handle.detach()


@pytest.mark.parametrize("name", ["live", "exact", "fused"])
def test_a_model_that_was_made_and_moved_in_inference_mode_is_changed_outside_of_it(name: str) -> None:
    with torch.inference_mode():
        model = model_of_three()
        plain = model(X)
    delta = delta_for(model)
    handle = attach(model, delta, **FORMS[name])
    expected = model(X)
    with torch.inference_mode():
        model.to(torch.float64).to(torch.float32)
    handle.set_scale(0.5)
    handle.set_scale(1.0)
    assert torch.allclose(model(X), expected, atol=1e-5)
    handle.detach()
    assert torch.equal(model(X), plain)


def test_gradients_are_as_they_were_after_a_change() -> None:
    model = model_of_three()
    with torch.no_grad():
        attach(model, delta_for(model)).detach()
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        attach(model, delta_for(model)).detach()
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
