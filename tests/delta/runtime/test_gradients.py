"""Gradients of δ against autograd through `U diag(ReLU(σ + δ)) Vᵀ`, written out in float64 with an SVD of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import live_zero, named
from torch import Tensor, nn
from torch.func import functional_call

from svdiff_delta import attach
from svdiff_delta.svd.decomposition import matricize, unmatricize

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear, wide": (lambda: nn.Linear(16, 4), (3, 16)),
    "linear, tall": (lambda: nn.Linear(4, 16, bias=False), (3, 4)),
    "conv1d": (lambda: nn.Conv1d(8, 4, 2, padding=1), (2, 8, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 4, 2, stride=2, padding=1), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 2, stride=2), (2, 4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(8, 4, 2, groups=2), (2, 8, 5, 5)),
    "embedding": (lambda: nn.Embedding(16, 4), (3, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (3, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 4)),
}

SPECTRA = {"flat": (8.0, 4.0, 2.0, 1.0), "steep": (64.0, 2.0, 1.0, 0.5)}
"""The steep one has a tail: rows of the other factor are stored for its small singular values."""

STATES: dict[str, Callable[[Tensor], Tensor]] = {
    "at zero": torch.zeros_like,
    "random": lambda sigma: 0.3 * sigma * torch.randn(sigma.shape, dtype=torch.float64),
    "all below −σ": lambda sigma: -1.5 * sigma,
    "half below −σ": lambda sigma: -1.5 * sigma * (torch.arange(len(sigma)) % 2),
}


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix of size 4 or 16 whose entries every float format holds exactly."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def model_of(kind: str, spectrum: tuple[float, ...]) -> Any:
    """A model with one layer, whose weight and factors are exact in float16, so that nothing is rounded anywhere."""
    model: Any = named(LAYERS[kind][0]())
    weight = model.layer.weight
    if weight.ndim > 1:
        axis = 1 if isinstance(model.layer, nn.ConvTranspose2d) else 0
        left, right = hadamard(4), hadamard(16)[:, :4]
        matrix = (left * torch.tensor(spectrum, dtype=torch.float64)) @ right.T
        tall = matricize(weight.detach(), axis).shape[0] == 16
        weight.data = unmatricize(matrix.T if tall else matrix, tuple(weight.shape), axis).float().contiguous()
        assert torch.equal(weight, weight.half().float())
    return model


def shifted(weight: Tensor, delta: Tensor, axis: int) -> Tensor:
    """The paper's formula; w + δ for norms."""
    if weight.ndim == 1:
        return weight + delta
    U, sigma, Vt = torch.linalg.svd(matricize(weight, axis), full_matrices=False)
    return unmatricize((U * torch.relu(sigma + delta)) @ Vt, tuple(weight.shape), axis)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_the_formula(kind: str, exact: bool, spectrum: str, state: str) -> None:
    torch.manual_seed(0)
    model, plain = model_of(kind, SPECTRA[spectrum]), model_of(kind, SPECTRA[spectrum]).double()
    zero = live_zero(model, on_request=True)
    (parameter,) = zero.metadata.parameters.values()
    shape = LAYERS[kind][1]
    x = torch.randint(16, shape) if kind == "embedding" else torch.randn(shape, dtype=torch.float64)
    weight = plain.layer.weight.detach()
    sigma = weight.abs() if weight.ndim == 1 else torch.linalg.svdvals(matricize(weight, parameter.axis))
    delta = STATES[state](sigma).requires_grad_(True)

    expected = functional_call(plain, {"layer.weight": shifted(weight, delta, parameter.axis)}, (x,))
    direction = torch.randn(expected.shape, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(expected, delta, direction)
    with attach(model, zero, trainable=True, exact=exact) as handle:
        model.double()
        ((_, value),) = handle.parameters()
        value.data.copy_(delta.detach())
        (found,) = torch.autograd.grad(model(x), value, direction)

    assert found.dtype == torch.float64
    if state == "all below −σ" and weight.ndim > 1:
        assert not wanted.any()
        assert not found.any()
    else:
        assert float((found - wanted).norm()) <= 1e-9 * float(wanted.norm())


@pytest.mark.parametrize("kind", ["linear, wide", "conv2d"])
def test_revived_shifts_take_the_gradients_that_bring_them_back(kind: str) -> None:
    torch.manual_seed(0)
    model = model_of(kind, SPECTRA["flat"])
    x = torch.randn(LAYERS[kind][1])
    with attach(model, live_zero(model), trainable=True) as handle:
        ((_, value),) = handle.parameters()
        output = model(x)
        direction = torch.randn(output.shape)
        (alive,) = torch.autograd.grad(output, value, direction)
        value.data.copy_(torch.tensor([-9.0, -5.0, -3.0, -2.0]))
        (dead,) = torch.autograd.grad(model(x), value, direction)
        handle.revive()
        (revived,) = torch.autograd.grad(model(x), value, direction)
    assert not dead.any()
    torch.testing.assert_close(revived, alive.clamp(max=0))  # a step against it makes δ larger
    assert revived.any()
