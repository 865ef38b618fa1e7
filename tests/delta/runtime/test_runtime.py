"""Shifted layers of every kind against weights put together in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.models import live_zero, named, random_delta
from support.weights import hadamard, normal
from torch import Tensor, nn

from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.errors import AttachError, BaseMismatchError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.arithmetic import scale
from svdiff_delta.runtime import attach, handle_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "wide linear": (nn.Linear(12, 8), (3, 12)),
    "tall linear": (nn.Linear(8, 12), (3, 8)),
    "square linear": (nn.Linear(9, 9), (3, 9)),
    "linear without bias": (nn.Linear(12, 8, bias=False), (2, 5, 12)),
    "linear of one output": (nn.Linear(7, 1), (3, 7)),
    "convolution with fewer outputs": (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 7, 7)),
    "convolution with more outputs": (nn.Conv2d(2, 40, 3, stride=2, padding=1), (2, 2, 9, 9)),
    "dilated convolution": (nn.Conv2d(4, 5, 3, dilation=2, padding=2), (1, 4, 8, 8)),
    "pointwise convolution": (nn.Conv2d(6, 10, 1), (2, 6, 4, 4)),
    "reflecting convolution": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (1, 3, 6, 6)),
    "one-dimensional convolution": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "three-dimensional convolution": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    "grouped convolution": (nn.Conv2d(8, 12, 3, groups=4, padding=1), (2, 8, 5, 5)),
    "transposed convolution": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1), (2, 6, 5, 5)),
    "transposed convolution with more outputs": (
        nn.ConvTranspose2d(1, 12, 2, output_padding=1, stride=2),
        (1, 1, 4, 4),
    ),
    "layer norm": (nn.LayerNorm(10), (3, 10)),
    "layer norm without bias": (nn.LayerNorm(10, bias=False), (3, 10)),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 4, 4)),
    "RMS norm": (nn.RMSNorm(10), (3, 10)),
    "layer norm over a plane": (nn.LayerNorm((4, 5)), (3, 4, 5)),
}


def double_copy(model: nn.Module, delta: Delta) -> nn.Module:
    """The same model in float64 with W + ΔW by a float64 SVD of the weight: the truth."""
    result = copy.deepcopy(model).double()
    for name, parameter in delta.metadata.parameters.items():
        weight = result.get_parameter(name.removeprefix("model."))
        shift = torch.from_numpy(delta[name].astype("f8"))
        if parameter.kind == "elementwise":
            weight.data += shift.reshape(weight.shape)
            continue
        rounded = weight.data.half().double()  # the basis dtype of normal numbers
        matrix = rounded.movedim(parameter.axis, 0).flatten(1)
        U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
        change = U * torch.maximum(shift, -sigma) @ Vt
        moved = rounded.movedim(parameter.axis, 0)
        weight.data += change.reshape(moved.shape).movedim(0, parameter.axis)
    return result


def half_exact(model: nn.Module) -> nn.Module:
    """Round the weights to float16, so that the Z form's ΔW is the protocol's."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    layer, shape = LAYERS[request.param]
    return half_exact(named(copy.deepcopy(layer))), normal(*shape, seed=3)


@pytest.mark.parametrize("exact", [False, True])
def test_a_shifted_layer_computes_with_the_shifted_weight(case: tuple[nn.Module, Tensor], exact: bool) -> None:
    model, x = case
    delta = random_delta(live_zero(model), size=0.3)
    expected = double_copy(model, delta)(x.double())
    with attach(model, delta, exact=exact):
        actual = model(x)
    assert torch.allclose(actual.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("exact", [False, True])
def test_the_additive_form_is_exact_on_weights_that_are_not_exact_in_the_basis_dtype(exact: bool) -> None:
    model, x = named(nn.Linear(12, 8)), normal(3, 12)
    delta = random_delta(live_zero(model), size=0.3)
    with attach(model, delta, exact=exact):
        actual = model(x)
    twin = double_copy(model, delta)
    expected, terms = twin(x.double()), x.double().abs() @ twin.layer.weight.abs().T
    error, change = (actual.double() - expected).norm(), (expected - model(x)).norm()
    # Sums of 12 terms for W, and of 12 and 8 for ΔW: each rounds by at most 2⁻²⁴ of the size of what it adds.
    rounding = 32 * 2**-24 * float(terms.norm() / change)
    assert rounding < 2**-11 / 8  # which the basis dtype errs by
    assert float(error / change) <= (rounding if exact else 1e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_a_zero_delta_changes_nothing_but_rounding(case: tuple[nn.Module, Tensor], exact: bool) -> None:
    model, x = case
    expected = model(x)
    with attach(model, live_zero(model), exact=exact):
        actual = model(x)
    assert torch.allclose(actual, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_detaching_restores_weights_and_outputs_bit_for_bit(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    attach(model, random_delta(live_zero(model))).detach()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(20, 6), (5, 12)])
def test_an_embedding_that_is_asked_for_is_shifted(shape: tuple[int, int], exact: bool) -> None:
    model, x = half_exact(named(nn.Embedding(*shape))), torch.tensor([[0, 3, 4], [4, 1, 0]])
    zero = live_zero(model, on_request=True)
    delta = random_delta(zero, size=0.3)
    expected = double_copy(model, delta)(x)
    with attach(model, delta, exact=exact):
        actual = model(x)
    assert torch.allclose(actual.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_two_names_of_one_weight_are_refused() -> None:
    model = nn.Sequential()
    model.add_module("text_model", named(nn.Linear(6, 6)))
    delta = random_delta(live_zero(model))
    (name,) = delta
    both = {name: delta[name], name.replace("text_model.", ""): delta[name]}
    parameters = dict.fromkeys(both, delta.metadata.parameters[name])
    twice = Delta(both, dataclasses.replace(delta.metadata, parameters=parameters))
    with pytest.raises(AttachError, match=r"shifts the same weight as model\.layer\.weight"):
        attach(model, twice)


@pytest.mark.parametrize("exact", [False, True])
def test_shifts_below_minus_sigma_remove_the_weight(exact: bool) -> None:
    model, x = half_exact(named(nn.Linear(12, 8, bias=False))), normal(3, 12)
    zero = live_zero(model)
    delta = Delta({name: np.full(8, -1e3) for name in zero}, zero.metadata)
    with attach(model, delta, exact=exact):
        assert float(model(x).abs().max()) < 1e-4


@pytest.mark.parametrize("exact", [False, True])
def test_a_weight_with_tied_singular_values_takes_a_shift(exact: bool) -> None:
    model, x = named(nn.Linear(16, 16, bias=False)), normal(3, 16)
    model.layer.weight.data = hadamard(16)
    zero = live_zero(model)
    assert zero.metadata.parameters["model.layer.weight"].tied == ((0, 15),)
    delta = Delta({"model.layer.weight": np.full(16, 0.5)}, zero.metadata)
    with attach(model, delta, exact=exact):
        actual = model(x)
    # All σ are 4, so δ = 0.5 scales the whole weight by 4.5 / 4.
    assert torch.allclose(actual, x @ hadamard(16).T * 1.125, atol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_steep_spectra_take_a_shift_on_every_singular_value(exact: bool) -> None:
    model, x = named(nn.Linear(40, 24, bias=False)), normal(3, 40)
    model.layer.weight.data *= torch.logspace(0, -3, 24)[:, None]
    half_exact(model)
    zero = live_zero(model)
    delta = Delta({"model.layer.weight": np.full(24, 0.01)}, zero.metadata)
    expected = double_copy(model, delta)(x.double())
    with attach(model, delta, exact=exact):
        actual = model(x)
    assert torch.allclose(actual.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_swapping_shows_the_other_delta() -> None:
    model, x = half_exact(named(nn.Linear(12, 8))), normal(3, 12)
    zero = live_zero(model)
    a, b = random_delta(zero, seed=1, size=0.3), random_delta(zero, seed=2, size=0.3)
    with attach(model, a) as handle:
        handle.swap(b)
        swapped = model(x)
    with attach(model, b):
        assert torch.equal(model(x), swapped)


def test_a_scale_is_a_factor_on_delta() -> None:
    model, x = half_exact(named(nn.Linear(12, 8))), normal(3, 12)
    delta = random_delta(live_zero(model), size=0.3)
    with attach(model, delta) as handle:
        handle.set_scale(0.5)
        scaled = model(x)
    with attach(model, scale(delta, 0.5)):
        assert torch.allclose(model(x), scaled, rtol=0, atol=1e-6)


def test_layers_that_a_swapped_delta_lacks_return_to_zero() -> None:
    model = half_exact(nn.Sequential(named(nn.Linear(6, 6)), named(nn.Linear(6, 6))))
    zero = live_zero(model)
    first = sorted(zero)[0]
    from svdiff_delta.ops.select import select

    delta = random_delta(zero, size=0.3)
    with attach(model, delta) as handle:
        handle.swap(select(delta, first))
        assert (handle.delta()[sorted(zero)[1]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "size"), [("wide linear", 0.05), ("tall linear", 0.05), ("layer norm", 2e-3), ("RMS norm", 2e-3)]
)
def test_a_small_delta_survives_half_precision(name: str, size: float, dtype: torch.dtype) -> None:
    layer, shape = LAYERS[name]
    model = named(copy.deepcopy(layer)).to(dtype)
    zero = live_zero(model)
    # Of a norm's shift of a thousandth, w + δ in bfloat16 would lose nearly all.
    delta = Delta({key: np.full(zero[key].shape, size) for key in zero}, zero.metadata)
    x = normal(8192, *shape[1:], seed=5).to(dtype)
    before = model(x).double()
    with attach(model, delta):
        change = model(x).double() - before
    float64 = copy.deepcopy(model).double()
    expected = double_copy(float64, delta)(x.double()) - float64(x.double())
    # Rounding of the outputs is noise around the change; the change itself must be there in full.
    recovered = float((change * expected).sum() / expected.square().sum())
    assert recovered == pytest.approx(1.0, abs=0.05)


def reference_gradient(model: nn.Module, delta: Delta, x: Tensor) -> Tensor:
    """Autograd through U diag(ReLU(σ + δ)) Vᵀ in float64."""
    (name,) = delta
    parameter = delta.metadata.parameters[name]
    shift = torch.from_numpy(delta[name].astype("f8")).requires_grad_()
    weight = model.layer.weight.detach().double()
    if parameter.kind == "elementwise":
        whole = weight + shift.reshape(weight.shape)
    else:
        moved = weight.movedim(parameter.axis, 0)
        U, sigma, Vt = torch.linalg.svd(moved.flatten(1), full_matrices=False)
        matrix = U * torch.relu(sigma + shift) @ Vt
        whole = matrix.reshape(moved.shape).movedim(0, parameter.axis)
    double = copy.deepcopy(model.layer).double()
    output = torch.func.functional_call(double, {"weight": whole}, x.double())
    output.square().sum().backward()
    assert shift.grad is not None
    return shift.grad


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", [0.0, 0.3, 2.0])
def test_gradients_are_those_of_the_paper_s_formula(case: tuple[Any, Tensor], size: float, exact: bool) -> None:
    model, x = case
    delta = random_delta(live_zero(model), size=size)
    expected = reference_gradient(model, delta, x)
    with attach(model, delta, trainable=True, exact=exact) as handle:
        model(x).square().sum().backward()
        ((_, value),) = handle.parameters()
        assert value.grad is not None
        assert torch.allclose(value.grad.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_trainable_tied_run_is_one_number_and_null_is_none() -> None:
    model = named(nn.Linear(16, 8, bias=False))
    model.layer.weight.data = torch.zeros(8, 16)
    model.layer.weight.data[:4] = hadamard(16)[:4]
    with attach(model, live_zero(model), trainable=True) as handle:
        ((_, value),) = handle.parameters()
        assert value.shape == (1,)
        value.data += 0.25
        assert handle.delta()["model.layer.weight"].tolist() == [0.25] * 4 + [0.0] * 4


def test_a_delta_that_is_not_trainable_has_no_parameters() -> None:
    model = named(nn.Linear(4, 4))
    with attach(model, live_zero(model)) as handle:
        assert not list(handle.parameters())


@pytest.fixture
def stored(tmp_path: Path) -> tuple[nn.Module, Delta, Path]:
    model = half_exact(named(nn.Linear(12, 8)))
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, random_delta(live_zero(model), size=0.3), path


def test_with_a_base_the_weight_is_dropped_and_read_back(stored: tuple[nn.Module, Delta, Path]) -> None:
    model, delta, path = stored
    before, parameter = model.layer.weight.clone(), model.layer.weight
    handle = attach(model, delta, base=open_base(path))
    assert weight_of(model.layer).isnan().all()
    assert model.layer.weight.untyped_storage().nbytes() == 4
    handle.detach()
    assert model.layer.weight is parameter
    assert torch.equal(model.layer.weight, before)


@pytest.mark.parametrize("found", [False, True])
def test_a_state_dict_holds_the_model_s_own_weights(stored: tuple[nn.Module, Delta, Path], found: bool) -> None:
    model, delta, path = stored
    before = copy.deepcopy(model.state_dict())
    with attach(model, delta, base=open_base(path) if found else None):
        shown = model.state_dict()
    for state in (shown, model.state_dict()):
        assert state.keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_a_weight_that_two_modules_share_is_not_dropped(tmp_path: Path) -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    model = nn.Sequential(first, second).requires_grad_(False)
    second.weight = first.weight
    save_file({"0.weight": first.weight.clone(), "1.weight": first.weight.clone()}, tmp_path / "m.safetensors")
    from svdiff_delta.ops.select import select

    delta = select(random_delta(live_zero(model), size=0.3), "model.0.weight")
    with attach(model, delta, base=open_base(tmp_path / "m.safetensors")):
        assert model(normal(2, 6)).isfinite().all()


def test_a_live_weight_that_is_not_the_base_s_is_refused(stored: tuple[nn.Module, Delta, Path]) -> None:
    model, delta, path = stored
    model.layer.weight.data[0, 0] += 1
    with pytest.raises(AttachError, match=r"model\.layer\.weight.*live weight"):
        attach(model, delta, base=open_base(path))


def test_a_delta_for_another_base_is_refused_by_name() -> None:
    delta = random_delta(live_zero(named(nn.Linear(12, 8))))
    other = nn.Sequential()
    other.add_module("layer", nn.Linear(12, 8))
    with pytest.raises(BaseMismatchError, match=r"model\.layer\.weight.*another base"):
        attach(other, delta)


def test_a_weight_of_another_shape_is_refused_by_name() -> None:
    delta = random_delta(live_zero(named(nn.Linear(12, 8))))
    other = nn.Sequential()
    other.add_module("layer", nn.Linear(12, 9))
    with pytest.raises(BaseMismatchError, match=r"shape \[8, 12\].*\[9, 12\]"):
        attach(other, delta)


def test_a_layer_that_is_not_there_is_named() -> None:
    delta = random_delta(live_zero(named(nn.Linear(12, 8))))
    with pytest.raises(AttachError, match=r"model\.layer\.weight.*no such layer"):
        attach(nn.Sequential(nn.Linear(12, 8)), delta)


def test_attaching_twice_is_refused() -> None:
    model = named(nn.Linear(12, 8))
    delta = random_delta(live_zero(model))
    with attach(model, delta), pytest.raises(AttachError, match="has a delta on it already"):
        attach(model, delta)


def test_a_lost_handle_is_found_on_the_model() -> None:
    model = nn.Sequential(OrderedDict(a=named(nn.Linear(12, 8)), b=named(nn.Linear(8, 4))))
    with pytest.raises(AttachError, match="nothing is attached to this model"):
        handle_of(model)
    handle = attach(model, random_delta(live_zero(model)))
    assert handle_of(model) is handle_of(model.a) is handle
    handle_of(model).detach()
    with pytest.raises(AttachError, match="nothing is attached"):
        handle_of(model)
    parts = [attach(part, random_delta(live_zero(part))) for part in (model.a, model.b)]
    with pytest.raises(AttachError, match="2 handles are on parts of this model: ask for that of one component"):
        handle_of(model)
    assert handle_of(model.b) is parts[1]


def test_nothing_is_attached_when_one_layer_does_not_fit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    delta = random_delta(live_zero(model))
    model[1].weight.data += 1
    with pytest.raises(BaseMismatchError):
        attach(model, delta)
    assert not hasattr(model[0], "svdiff_shift")


def test_a_detached_handle_says_so() -> None:
    model = named(nn.Linear(4, 4))
    delta = random_delta(live_zero(model))
    handle = attach(model, delta)
    handle.detach()
    with pytest.raises(AttachError, match="was detached"):
        handle.swap(delta)


def test_a_scale_that_is_not_finite_is_refused() -> None:
    model = named(nn.Linear(4, 4))
    with attach(model, live_zero(model)) as handle, pytest.raises(InputError, match="finite"):
        handle.set_scale(float("nan"))


def test_a_deep_copy_of_an_attached_model_has_its_own_shift() -> None:
    model, x = half_exact(named(nn.Linear(12, 8))), normal(3, 12)
    delta = random_delta(live_zero(model), size=0.3)
    with attach(model, delta) as handle:
        expected = model(x)
        twin = copy.deepcopy(model)
        handle.set_scale(0.0)
        assert torch.equal(twin(x), expected)
