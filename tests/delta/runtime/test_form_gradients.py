"""Gradients in every form: by biases trained beside δ, differentiated again, under torch.func, in float16's range."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.live import double_copy, relative
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta import AttachError, attach
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime.forms.choice import FormName

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "wide": (nn.Linear(24, 12), (5, 24)),
    "tall": (nn.Linear(12, 24), (5, 12)),
    "convolution": (nn.Conv2d(4, 16, 3, padding=1), (4, 5, 5)),
    "strided": (nn.Conv2d(16, 12, 1, stride=2), (16, 4, 4)),
    "transposed": (nn.ConvTranspose2d(8, 4, 3, stride=2), (8, 4, 4)),
}
FORMS: tuple[FormName, ...] = ("factored", "resident", "additive", "whole")


def made(name: str, dtype: torch.dtype) -> tuple[nn.Module, Delta, Tensor]:
    layer, shape = LAYERS[name]
    model = named(copy.deepcopy(layer)).bfloat16().to(dtype)  # so that the basis dtype holds the weight
    return model, random_delta(live_zero(model), size=0.05), normal(3, *shape).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_has_its_own_gradient_and_none_of_the_change(name: str, form: FormName) -> None:
    model, delta, x = made(name, torch.float64)
    model.layer.bias.requires_grad_()
    with attach(model, delta, form=form, trainable=True):
        output = model(x)
        target = normal(*output.shape, seed=1).double()
        (output * target).sum().backward()
    axes = [
        axis for axis in range(output.ndim) if axis != (output.ndim - 1 if isinstance(model.layer, nn.Linear) else 1)
    ]
    assert relative(model.layer.bias.grad, target.sum(axes)) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own `jvp` calls it
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_transforms_of_functions_go_through_a_shifted_layer(name: str, form: FormName) -> None:
    model, delta, x = made(name, torch.float64)
    truth = double_copy(model, delta)

    def loss(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.as_tensor(module(x)).tanh().sum()

    def results(module: nn.Module) -> list[Tensor]:
        mapped = torch.func.vmap(lambda one: module(one[None])[0])(x)
        return [torch.func.grad(loss(module))(x), mapped, torch.func.jvp(module, (x,), (x + 1,))[1]]

    with attach(model, delta, form=form):
        found = results(model)
    for each, expected in zip(found, results(truth), strict=True):
        assert relative(each, expected) < 1e-5


def twice(model: nn.Module, delta: Delta, form: FormName, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient by x of the squared gradient by δ."""
    x = x.clone().requires_grad_()
    with attach(model, delta, form=form, trainable=True) as handle:
        ((_, trained),) = handle.parameters()
        (by_delta,) = torch.autograd.grad(loss(model(x)), trained, create_graph=True)
        by_delta.square().sum().backward(inputs=[x, trained])
    return torch.as_tensor(x.grad)


@pytest.mark.parametrize("form", ["factored", "additive", "whole"])
@pytest.mark.parametrize("name", ["wide", "tall", "convolution"])
def test_a_gradient_by_delta_can_be_differentiated_again(name: str, form: FormName) -> None:
    model, delta, x = made(name, torch.float64)
    weight = model.layer.weight.detach()
    u, _, vt = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    shift = torch.tensor(next(iter(delta.values())), dtype=torch.float64, requires_grad=True)
    changed = (weight.flatten(1) + u @ torch.diag(shift) @ vt).reshape(weight.shape)
    given = x.clone().requires_grad_()
    output = torch.func.functional_call(model, {"layer.weight": changed}, (given,))
    (by_delta,) = torch.autograd.grad(output.tanh().sum(), shift, create_graph=True)
    (expected,) = torch.autograd.grad(by_delta.square().sum(), given)
    assert relative(twice(model, delta, form, x, lambda y: y.tanh().sum()), expected) < 1e-5


@pytest.mark.parametrize("loss", [lambda y: y.tanh().sum(), lambda y: y.sum()], ids=["curved", "straight"])
@pytest.mark.parametrize("name", ["wide", "tall", "convolution", "strided"])
def test_the_resident_form_says_that_it_cannot_differentiate_twice(name: str, loss: Callable[[Tensor], Tensor]) -> None:
    model, delta, x = made(name, torch.float64)
    with pytest.raises(AttachError, match=r'differentiated once more.*"additive"'):
        twice(model, delta, "resident", x, loss)


def largest(model: nn.Module) -> Tensor:
    """An input near float16's largest number that is all in the first singular vector's direction."""
    _, _, vt = torch.linalg.svd(model.layer.weight.float(), full_matrices=False)
    return torch.sign(vt[:1]).half() * 6e4


@pytest.mark.parametrize("form", ["resident", "additive", "whole"])
@pytest.mark.parametrize("shape", [(96, 48), (48, 96), (64, 64)])
def test_large_activations_do_not_overflow_between_two_products(shape: tuple[int, int], form: FormName) -> None:
    """The base's output is small there, and what stands between both products is √columns times the input."""
    model = named(nn.Linear(*shape))
    model.layer.weight.data *= 0.001
    model.half()
    delta = random_delta(live_zero(model), size=0.3)
    x = largest(model)
    expected = torch.as_tensor(double_copy(model, delta)(x.double()))
    assert expected.abs().max() < 5e3
    with attach(model, delta, form=form, trainable=True) as handle:
        output = model(x)
        (output.float() * 1e-3).sum().backward()
        ((_, trained),) = handle.parameters()
    assert relative(output, expected) < 1e-3
    assert trained.grad.isfinite().all()
