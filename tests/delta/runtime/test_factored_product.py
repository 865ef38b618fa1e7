"""Gains between two factors of a linear layer in training: the same as two layers', in fewer operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.weights import normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svdiff_delta.runtime.factored_product import factored_product, is_trained

SHAPES = [(6,), (3, 6), (2, 3, 6), (2, 2, 3, 6)]
INNER, OUTER, GAIN, BIAS = normal(4, 6, seed=1), normal(5, 4, seed=2), normal(4, seed=3), normal(5, seed=4)


def two_layers(x: Tensor, inner: Tensor, outer: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(F.linear(x, inner) * gain, outer, bias)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["without bias", "with bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_two_linear_layers_with_gradients_of_any_order(shape: tuple[int, ...], bias: Tensor | None) -> None:
    inner, outer = INNER.double(), OUTER.double()
    given = [normal(*shape).double(), GAIN.double(), *([] if bias is None else [bias.double()])]
    for each in given:
        each.requires_grad_()

    def call(x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
        return factored_product(x, inner, outer, gain, bias)

    bias = given[2] if len(given) > 2 else None
    torch.testing.assert_close(call(*given), two_layers(given[0], inner, outer, given[1], bias))
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


class Counts(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:  # type: ignore[type-arg]
        self.count += 1
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


def counted(call: Callable[..., Tensor]) -> int:
    x, gain = normal(2, 3, 6).requires_grad_(), GAIN.clone().requires_grad_()
    with Counts() as there:
        output = call(x, INNER, OUTER, gain, BIAS)
    grad = torch.ones_like(output)
    with Counts() as back:
        torch.autograd.grad(output, (x, gain), grad)
    return there.count + back.count


def test_it_takes_four_fifths_of_their_operations() -> None:
    assert counted(factored_product) <= 0.8 * counted(two_layers)


def test_it_is_for_training_alone() -> None:
    x, gain = normal(3, 6), GAIN.clone().requires_grad_()
    assert is_trained(x, INNER, gain)
    assert not is_trained(x, INNER, GAIN)
    assert not is_trained(x.double(), INNER, gain)
    assert not is_trained(x, INNER, gain.expand(3, 4))  # a gain for each sample
    with torch.no_grad():
        assert not is_trained(x, INNER, gain)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_trained(x, INNER, gain)
    with torch.autograd.forward_ad.dual_level():
        assert not is_trained(x, INNER, gain)
    seen: list[bool] = []
    torch.func.grad(lambda each: (seen.append(is_trained(each, INNER, gain)), each.sum())[1])(x)
    assert seen == [False]
