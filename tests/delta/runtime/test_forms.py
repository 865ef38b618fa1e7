"""The forms in which a layer computes: each against float64, the choice among them, and what none may do."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from support.live import double_copy, relative
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from svdiff_delta import AttachError, InputError, attach
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.weights import WeightedDelta
from svdiff_delta.runtime.forms.choice import FORMS, FormName
from svdiff_delta.runtime.forms.costs import cost, whole_is_cheaper

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "wide": (nn.Linear(96, 48), (5, 96)),
    "square": (nn.Linear(48, 48), (5, 48)),
    "tall": (nn.Linear(48, 96), (5, 48)),
    "without bias": (nn.Linear(96, 48, bias=False), (96,)),
    "GPT-2's linear": (Conv1D(48, 96), (5, 96)),
    "GPT-2's tall linear": (Conv1D(96, 48), (5, 48)),
    "convolution": (nn.Conv2d(8, 32, 3, padding=1), (8, 6, 6)),
    "pointwise": (nn.Conv2d(64, 48, 1), (64, 4, 4)),
    "tall pointwise": (nn.Conv2d(48, 64, 1), (48, 4, 4)),
    "one dimension": (nn.Conv1d(8, 16, 3, stride=2), (8, 9)),
    "transposed": (nn.ConvTranspose2d(16, 8, 3, stride=2), (16, 5, 5)),
    "grouped": (nn.Conv2d(8, 8, 3, groups=8), (8, 6, 6)),
    "two groups": (nn.Conv2d(32, 8, 3, groups=2), (32, 6, 6)),
}
SERVES = {
    "resident": [name for name in LAYERS if "group" not in name],
    "additive": [name for name in LAYERS if "group" not in name],
    "whole": list(LAYERS),
}
PAIRS = [(name, form) for form, names in SERVES.items() for name in names]


def made(name: str, dtype: torch.dtype, size: float = 0.02) -> tuple[nn.Module, Delta, Tensor]:
    layer, shape = LAYERS[name]
    model = named(copy.deepcopy(layer)).to(dtype)
    return model, random_delta(live_zero(model), size=size), normal(3, *shape).to(dtype)


def change_of(model: nn.Module, delta: Delta, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output with a delta and its change, in float64."""
    shifted = torch.as_tensor(double_copy(model, delta)(x.double()))
    return shifted, shifted - torch.as_tensor(copy.deepcopy(model).double()(x.double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_each_form_has_the_whole_change_in_half_precision(name: str, form: FormName, dtype: torch.dtype) -> None:
    """Rounding is noise beside it: what is measured is the part of the change that is there."""
    model, delta, x = made(name, dtype, size=0.2)
    expected, change = change_of(model, delta, x)
    with attach(model, delta, form=form):
        found = model(x).double() - (expected - change)
    share = float((found * change).sum() / change.square().sum())
    assert share == pytest.approx(1, abs=0.02)
    assert model.layer.svdiff_shift.keeps_weight if hasattr(model.layer, "svdiff_shift") else True


@pytest.mark.parametrize("name", ["wide", "square", "tall", "without bias", "GPT-2's linear", "pointwise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_product_is_rounded_once_in_resident_form(name: str, dtype: torch.dtype) -> None:
    """δ of equal size on all σ, of which a square layer's smallest would drown in the rounding of y."""
    model, delta, x = made(name, dtype)
    expected, _ = change_of(model, delta, x)
    with attach(model, delta, form="resident"):
        error = (model(x).double() - expected).norm()
    assert float(error) <= 1.1 * float((expected.to(dtype).double() - expected).norm())


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_each_form_is_the_base_bit_for_bit_at_zero(name: str, form: FormName) -> None:
    model, delta, x = made(name, torch.bfloat16)
    plain = model(x)
    with attach(model, delta, form=form) as handle:
        for change in (lambda: handle.set_scale(0.0), handle.disable):
            handle.set_scale(1.0)
            assert not torch.equal(model(x), plain)
            change()
            assert torch.equal(model(x), plain)


def test_a_delta_that_is_trained_and_turned_off_is_the_base_bit_for_bit() -> None:
    model, delta, x = made("square", torch.bfloat16)
    plain = model(x)
    with attach(model, delta, trainable=True) as handle:
        handle.disable()
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("form", ["resident", "additive"])
@pytest.mark.parametrize("name", ["wide", "square", "tall", "convolution", "tall pointwise", "transposed"])
def test_gradients_are_those_of_the_formula(name: str, form: FormName) -> None:
    """By x and by δ, of float64 layers, against W + U diag(δ) Vᵀ by autograd."""
    layer, shape = LAYERS[name]
    model = named(copy.deepcopy(layer)).bfloat16().double()  # so that the basis dtype holds the weight
    delta = random_delta(live_zero(model), size=0.1)
    x, target = normal(3, *shape).double().requires_grad_(), None
    with attach(model, delta, form=form, trainable=True) as handle:
        output = model(x)
        target = normal(*output.shape, seed=1).double()
        (output * target).sum().backward()
        ((_, trained),) = handle.parameters()
        found, by_x = trained.grad.double(), x.grad.clone()
    weight = model.layer.weight.detach()
    axis = 1 if isinstance(model.layer, nn.ConvTranspose2d) else 0
    matrix = weight.movedim(axis, 0).flatten(1)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    shift = torch.tensor(next(iter(delta.values())), dtype=torch.float64, requires_grad=True)
    changed = (matrix + u @ torch.diag(shift) @ vt).reshape(weight.movedim(axis, 0).shape).movedim(0, axis)
    x.grad = None
    (torch.func.functional_call(model, {"layer.weight": changed}, (x,)) * target).sum().backward()
    assert relative(found, shift.grad) < 1e-4
    assert relative(by_x, x.grad) < 1e-4


@pytest.mark.parametrize("name", ["wide", "tall", "convolution", "transposed"])
def test_samples_have_their_own_delta_in_resident_form(name: str) -> None:
    model, delta, x = made(name, torch.float32)
    other = random_delta(live_zero(model), size=0.3, seed=5)
    with attach(model, {"a": delta, "b": other}, form="resident") as handle:
        with handle.per_sample(["a", None, "b"]):
            found = model(x)
        for index, one in enumerate(["a", None, "b"]):
            with handle.per_sample([one]):
                assert relative(found[index : index + 1], model(x[index : index + 1])) < 1e-5


def test_a_tail_that_nothing_may_be_divided_by_has_its_change() -> None:
    u, _ = torch.linalg.qr(normal(12, 12).double())
    v, _ = torch.linalg.qr(normal(20, 12, seed=2).double())
    sigma = torch.logspace(0, -7, 12, dtype=torch.float64)
    layer = nn.Linear(20, 12, bias=False)
    layer.weight.data = ((u * sigma) @ v.T).float()
    model = named(layer)
    delta = random_delta(live_zero(model), size=0.1)
    x = normal(5, 20)
    _, change = change_of(model, delta, x)
    for form in ("resident", "additive"):
        plain = copy.deepcopy(model)(x)
        with attach(model, delta, form=form):  # type: ignore[arg-type]
            assert model.layer.svdiff_shift.form.name == form
            assert relative((model(x) - plain).double(), change) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_read_as_they_are_computed_with(dtype: torch.dtype) -> None:
    model, delta, x = made("tall", dtype, size=0.3)
    with attach(model, delta, form="resident"):
        weight, output = model.layer.weight + 0, model(x)
    by_weight = torch.nn.functional.linear(x, weight, model.layer.bias)
    assert relative(by_weight.float(), output.float()) < (1e-5 if dtype == torch.float32 else 2e-2)


# -- the choice


@pytest.mark.parametrize(
    ("name", "dtype", "form"),
    [
        ("wide", torch.float32, "factored"),
        ("wide", torch.bfloat16, "resident"),
        ("square", torch.float16, "resident"),
        ("tall", torch.bfloat16, "resident"),
        ("convolution", torch.bfloat16, "resident"),
    ],
)
def test_the_form_is_the_cheapest_that_serves(name: str, dtype: torch.dtype, form: str) -> None:
    model, delta, _ = made(name, dtype)
    with attach(model, delta):
        assert model.layer.svdiff_shift.form.name == form
    with attach(model, delta, exact=True):
        assert model.layer.svdiff_shift.form.name == "additive"


def test_a_convolution_that_the_square_factor_does_not_reach_is_additive() -> None:
    model = named(nn.Conv2d(2, 32, 3)).bfloat16()
    delta = random_delta(live_zero(model))
    with attach(model, delta):
        assert model.layer.svdiff_shift.form.name == "additive"
    with pytest.raises(AttachError, match=r'weight: the form "resident" cannot serve it: .*positions'):
        attach(model, delta, form="resident")


@pytest.mark.parametrize("name", ["grouped", "two groups"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_cannot_serve_a_layer_is_refused_by_name(name: str, form: FormName) -> None:
    model, delta, x = made(name, torch.float32)
    plain = model(x)
    with pytest.raises(AttachError, match=f'model.layer.weight: the form "{form}" cannot serve it') as caught:
        attach(model, delta, form=form)
    assert '"whole"' in str(caught.value)
    assert torch.equal(model(x), plain)


def test_factors_in_half_precision_do_not_stand_for_a_weight() -> None:
    model, delta, _ = made("wide", torch.bfloat16)
    with pytest.raises(AttachError, match='"factored" cannot serve it: a product of two factors in half precision'):
        attach(model, delta, form="factored")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "z"}, "form is one of factored, additive, resident, whole, not 'z'"),
        ({"form": "resident", "mode": "fused"}, "`form` is about layers that compute with δ"),
        ({"form": "resident", "exact": True}, '`exact` does not go with the form "resident"'),
        ({"form": "factored", "exact": True}, '`exact` does not go with the form "factored"'),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    model, delta, _ = made("wide", torch.float32)
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        attach(model, delta, **options)


def test_every_name_of_a_form_has_one() -> None:
    assert set(get_args(FormName)) == {*FORMS, "whole"}


# -- the table of costs


def without_tail(name: str) -> tuple[nn.Module, Delta, Tensor]:
    """A layer none of whose singular values is small."""
    model, _, x = made(name, torch.float32)
    u, _, vt = torch.linalg.svd(model.layer.weight.detach(), full_matrices=False)
    model.layer.weight.data = (u * torch.linspace(1, 0.5, len(vt))) @ vt
    return model, random_delta(live_zero(model), size=0.02), x


def held(model: nn.Module, delta: WeightedDelta, form: FormName, size: int) -> int:
    """Numbers held beside the model's own, gains apart."""
    with attach(model, delta, form=form):
        shift = model.layer.svdiff_shift
        own = 0 if shift.keeps_weight else size
        return sum(each.numel() for each in (shift.inner, shift.outer, shift.square) if each is not None) - own


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["wide", "square", "tall", "without bias"])
def test_the_table_says_what_is_held_and_multiplied(name: str, form: FormName) -> None:
    model, delta, x = without_tail(name)
    rows, columns = model.layer.weight.shape
    said = cost(form, rows, columns)
    assert held(model, delta, form, rows * columns) == said.held
    with attach(model, delta, form=form), FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * said.operations * (x.numel() // columns)


def test_many_positions_put_the_weight_together_once() -> None:
    """In factored form, where nothing is trained: fewer operations, and the same output."""
    model, delta, _ = without_tail("square")
    x = normal(2_000, 48)
    assert whole_is_cheaper(48, 48, 48, 2_000)
    assert not whole_is_cheaper(48, 48, 48, 5)
    expected, _ = change_of(model, delta, x)
    with attach(model, delta) as handle, FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            assert relative(model(x).double(), expected) < 1e-4
        assert counter.get_total_flops() == 2 * 48 * 48 * (2_000 + 48)
        with handle.per_sample(["default", None]):  # rows that differ have no weight in common
            model(x)
