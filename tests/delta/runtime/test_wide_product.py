"""Products of bfloat16 with sums that are not rounded, whatever the processor has for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.live import relative
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from svdiff_delta.errors import AttachError
from svdiff_delta.runtime import attach, native_product
from svdiff_delta.runtime.layer_product import layer_product
from svdiff_delta.runtime.wide_product import spectral_product, wide_product

ROUNDED = 2.0**-8
"""What rounding to bfloat16 may lose of a number."""


@pytest.mark.parametrize("shape", [(5, 40), (2, 3, 40), (1, 40)])
def test_a_sum_is_not_rounded_and_keeps_a_small_change(shape: tuple[int, ...]) -> None:
    x, weight = normal(*shape).bfloat16(), normal(24, 40, seed=1).bfloat16()
    change = 1e-3 * normal(*shape, seed=2)
    plain, changed = wide_product(x, weight), wide_product(x, weight, change)
    assert plain.dtype == changed.dtype == torch.float32
    assert relative(plain, x.double() @ weight.double().T) < 1e-5
    assert relative(changed - plain, change.double() @ weight.double().T) < ROUNDED


def test_gradients_come_to_what_is_multiplied_and_to_its_change() -> None:
    x, weight = normal(5, 40).bfloat16().requires_grad_(), normal(24, 40, seed=1).bfloat16()
    change, target = (0.1 * normal(5, 40, seed=2)).requires_grad_(), normal(5, 24, seed=3).bfloat16().float()
    (wide_product(x, weight, change) * target).sum().backward()
    expected = target.double() @ weight.double()
    assert x.grad is not None
    assert change.grad is not None
    assert relative(x.grad, expected) < ROUNDED
    assert relative(change.grad, expected) < ROUNDED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offset_much_larger_than_what_is_left_is_taken_before_rounding(dtype: torch.dtype) -> None:
    square = torch.linalg.qr(normal(32, 32))[0].bfloat16()
    offset, gain = (100 * normal(32)).bfloat16(), normal(32, seed=1)
    x = (offset + normal(6, 32, seed=2)).to(torch.bfloat16).to(dtype)
    found = spectral_product(x, square, gain, offset.to(dtype))
    factor = square.double()
    expected = ((x.double() - offset.double()) @ factor.T * gain.double()) @ factor
    assert relative(found, expected) < 2 * ROUNDED


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is said to have products of bfloat16; torch has them on any."""
    found = bool(request.param)
    monkeypatch.setattr(native_product, "_has_bfloat16", lambda: found)
    return found


def gradients(result: Tensor, given: list[Tensor]) -> list[Tensor]:
    target = normal(*result.shape, seed=9).bfloat16().to(result.dtype)
    return list(torch.autograd.grad(result, given, target))


@pytest.mark.parametrize("shape", [(2, 9, 40), (1, 40)])
@pytest.mark.usefixtures("native")
def test_a_sum_that_is_rounded_at_once_is_the_one_that_is_rounded_later(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_product, "PIECE", 100)
    x, weight = normal(*shape).bfloat16().requires_grad_(), normal(24, 40, seed=1).bfloat16()
    change = (0.1 * normal(*shape, seed=2)).requires_grad_()
    bias = normal(24, seed=3).bfloat16().requires_grad_()
    found = wide_product(x, weight, change, bias, torch.bfloat16)
    later = (wide_product(x, weight, change) + bias).to(torch.bfloat16)
    assert torch.equal(found, later)
    for one, other in zip(gradients(found, [x, change, bias]), gradients(later, [x, change, bias]), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [None, 10 * normal(70, seed=4).bfloat16()], ids=["", "offset"])
def test_pieces_are_computed_as_the_whole(
    dtype: torch.dtype, offset: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_product, "_has_bfloat16", lambda: True)
    square = torch.linalg.qr(normal(70, 70))[0].bfloat16()
    x, gain = normal(2, 9, 70).to(dtype).requires_grad_(), normal(70, seed=1).requires_grad_()
    taken = None if offset is None else offset.to(dtype).requires_grad_()
    given = [x, gain, *([] if taken is None else [taken])]
    results = []
    for size in (1 << 18, 100):
        monkeypatch.setattr(native_product, "PIECE", size)
        result = spectral_product(x, square, gain, taken)
        results.append([result, *gradients(result, given)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    rows = x.detach().double() if taken is None else x.detach().double() - taken.detach().double()
    expected = (rows @ square.double().T * gain.detach().double()) @ square.double()
    assert relative(results[0][0], expected) < 4 * ROUNDED


@pytest.mark.parametrize("more", [False, True], ids=["", "tail"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("native")
def test_a_layer_that_is_one_operation_is_the_sum_of_its_parts(
    dtype: torch.dtype, more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_product, "PIECE", 100)
    x, weight = normal(2, 9, 40).bfloat16().requires_grad_(), normal(24, 40, seed=1).bfloat16()
    square = torch.linalg.qr(normal(24, 24))[0].bfloat16()
    gain, bias = (0.1 * normal(24, seed=2)).requires_grad_(), normal(24, seed=3).bfloat16().requires_grad_()
    tail = normal(2, 9, 24, seed=4).requires_grad_() if more else None
    given = [x, gain, bias, *([] if tail is None else [tail])]
    found = layer_product(x, weight, square, gain, bias=bias, more=tail, dtype=dtype).to(dtype)
    y = wide_product(x, weight)
    parts = y + spectral_product(y, square, gain) + bias
    parts = (parts if tail is None else parts + tail).to(dtype)
    assert torch.equal(found, parts)
    for one, other in zip(gradients(found, given), gradients(parts, given), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.usefixtures("native")
def test_a_layer_that_is_one_operation_says_that_it_cannot_be_differentiated_twice_by_its_gain() -> None:
    x, weight = normal(9, 40).bfloat16().requires_grad_(), normal(24, 40, seed=1).bfloat16()
    square, gain = torch.linalg.qr(normal(24, 24))[0].bfloat16(), (0.1 * normal(24, seed=2)).requires_grad_()
    y = layer_product(x, weight, square, gain, bias=None, more=None, dtype=torch.bfloat16)
    (by_x,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(by_x.float().sum(), x, retain_graph=True)[0]).all()
    (by_gain,) = torch.autograd.grad(y.float().square().sum(), gain, create_graph=True)
    with pytest.raises(AttachError, match="differentiated once more"):
        by_gain.sum().backward()


class Largest(TorchDispatchMode):
    """Notes the largest result in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.size = max(self.size, result.numel())
        return result


@pytest.mark.parametrize(("rows", "columns"), [(512, 256), (256, 320)])
def test_a_layer_in_training_never_has_all_of_its_sums_in_float32(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_product, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(native_product, "PIECE", 1 << 10)
    model = named(nn.Linear(columns, rows)).bfloat16()
    delta, x = random_delta(live_zero(model), size=0.05), normal(512, columns).bfloat16()
    with attach(model, delta, form="resident", trainable=True), Largest() as seen:
        model(x).sum().backward()
    assert 0 < seen.size < 512 * min(rows, columns)
