"""Half precision and autocast against float64, and models that are cast or moved while a delta is on them."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.live import CASES, delta_of, double_copy, relative, run, tiny
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from svdiff_delta.base_model.base import open_base
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.arithmetic import scale
from svdiff_delta.runtime import attach

ONE_PRODUCT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(64, 48), (8, 64)),
    "linear without bias": (nn.Linear(64, 48, bias=False), (64,)),
    "GPT-2's linear": (Conv1D(48, 64), (8, 64)),
    "pointwise convolution": (nn.Conv2d(64, 48, 1), (64, 4, 4)),
}


def recovered(change: Tensor, expected: Tensor) -> float:
    """How much of a change is there; rounding is noise beside it."""
    return float((change.double() * expected).sum() / expected.square().sum())


def truth(model: nn.Module, delta: Delta, x: Tensor) -> Tensor:
    """The change of the output by a delta, in float64."""
    plain = copy.deepcopy(model).double()
    return torch.as_tensor(double_copy(model, delta)(x.double()) - plain(x.double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", ONE_PRODUCT)
def test_a_shift_of_a_thousandth_survives_half_precision(layer: str, dtype: torch.dtype) -> None:
    """Added to outputs that are rounded already, half of it would be lost in bfloat16."""
    module, shape = ONE_PRODUCT[layer]
    model = named(copy.deepcopy(module)).to(dtype)
    delta = random_delta(live_zero(model), size=1e-3)
    x = normal(2048, *shape).to(dtype)
    before, expected = model(x).double(), truth(model, delta, x)
    with attach(model, delta):
        change = model(x).double() - before
    assert recovered(change, expected) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("layer", ONE_PRODUCT)
def test_a_small_shift_survives_autocast(layer: str, exact: bool) -> None:
    module, shape = ONE_PRODUCT[layer]
    model = named(copy.deepcopy(module))
    delta = random_delta(live_zero(model), size=0.01)
    x = normal(2048, *shape)
    with torch.autocast("cpu", torch.bfloat16), attach(model, delta, exact=exact) as handle:
        shifted = model(x)
        handle.set_scale(0.0)
        before = model(x)
    assert shifted.dtype == torch.bfloat16
    assert recovered(shifted.double() - before.double(), truth(model, delta, x)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["UNet", "Stable Diffusion 3", "CLIP's text encoder"])
def test_autocast_errs_about_as_much_as_without_a_delta(name: str, exact: bool) -> None:
    model, delta = tiny(name), delta_of(name)
    expected, plain = run(double_copy(model, delta), name), run(model, name)
    with torch.autocast("cpu", torch.bfloat16):
        error = relative(run(model, name), plain)
        with attach(model, delta, exact=exact):
            found = run(model, name)
    assert relative(found, expected) < 4 * error


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """A model with its file, and what `attach` is told of it."""
    model = nn.Sequential(named(nn.Linear(12, 8)), named(nn.Conv1d(6, 5, 1)), named(nn.LayerNorm(8)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model, open_base(tmp_path / "model.safetensors")


X = normal(4, 6, 12)


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_may_be_cast_while_a_delta_is_on_it(stored: Any, dtype: torch.dtype, found: bool) -> None:
    model, base = stored
    delta = random_delta(live_zero(model), size=0.3)
    cast = copy.deepcopy(model).to(dtype)
    expected = double_copy(model, delta)(X.double())
    with attach(model, delta, base=base if found else None) as handle:
        model.to(dtype)
        limit = 0.02 if dtype.itemsize == 2 else 1e-3
        assert relative(model(X.to(dtype)), expected) < limit
        handle.set_scale(0.5)
        assert relative(model(X.to(dtype)), double_copy(model_in(stored), scale(delta, 0.5))(X.double())) < limit
        assert handle.delta().keys() == delta.keys()
    assert all(torch.equal(value, cast.state_dict()[key]) for key, value in model.state_dict().items())


def model_in(stored: Any) -> nn.Module:
    """The model as its file holds it."""
    _, base = stored
    model = nn.Sequential(named(nn.Linear(12, 8)), named(nn.Conv1d(6, 5, 1)), named(nn.LayerNorm(8)))
    model.load_state_dict({name.removeprefix("model."): base.read(name) for name in base.names()})
    return model


def test_gains_stay_float32_in_a_cast_model(stored: Any) -> None:
    """bfloat16 would lose 22 % of a δ of 1 % of σ."""
    model, base = stored
    delta = random_delta(live_zero(model), size=0.01)
    for trainable in (False, True):
        with attach(model, delta, base=base, trainable=trainable) as handle:
            model.to(torch.bfloat16)
            assert all(module.svdiff_shift.gain.dtype == torch.float32 for module in shifted(model))
            assert all(value.dtype == torch.float32 for _, value in handle.parameters())
        model.float().load_state_dict(model_in(stored).state_dict())


def shifted(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "svdiff_shift")]


def test_a_dropped_weight_stays_dropped_when_the_model_moves(stored: Any) -> None:
    model, base = stored
    with attach(model, random_delta(live_zero(model)), base=base):
        model.to(torch.float64)
        assert model[0].layer.weight.untyped_storage().nbytes() == 8
        assert model[0].layer.weight.shape == (8, 12)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["UNet", "Flux"])
def test_a_model_computes_wherever_it_is_moved(name: str, exact: bool, trainable: bool) -> None:
    """On the device of tensors without values, which refuse to be mixed with others as those of a GPU do."""
    model = tiny(name)
    inputs = {
        key: value.to("meta") if isinstance(value, Tensor) else value for key, value in CASES[name].inputs(2).items()
    }
    with attach(model, delta_of(name), name="dog", exact=exact, trainable=trainable) as handle:
        model.to("meta")
        assert {tensor.device.type for tensor in chain(model.parameters(), model.buffers())} == {"meta"}
        assert model(**inputs).sample.device.type == "meta"
        if not trainable:
            handle.set_scale(0.5)
            with handle.per_sample(["dog", None]):
                assert model(**inputs).sample.device.type == "meta"


def test_devices_that_are_mixed_are_refused() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        normal(3) * normal(3).to("meta")


def test_a_file_that_was_loaded_in_half_and_cast_back_is_restored_bit_for_bit(tmp_path: Path) -> None:
    model = named(nn.Linear(12, 8))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    delta = random_delta(live_zero(model), size=0.3)
    model.half().float()
    before, plain = model.layer.weight.clone(), model(normal(3, 12))
    with attach(model, delta, base=open_base(tmp_path / "model.safetensors")) as handle:
        handle.set_scale(0.0)
        assert relative(model(normal(3, 12)), plain) < 1e-6
    assert torch.equal(model.layer.weight, before)
