"""W + ΔW written part by part, against weights put together in float64."""

from __future__ import annotations

import pytest
import torch
from support.weights import hadamard, normal, projected_shift, relative, true_delta_weight, with_spectrum
from torch import Tensor

from svdiff_delta.format.parameter import Kind, Parameter
from svdiff_delta.svd import shifted_weight
from svdiff_delta.svd.decomposition import Runs, compute_basis, find_runs, matricize, unmatricize
from svdiff_delta.svd.fingerprint import fingerprint_stored, round_weight
from svdiff_delta.svd.prepare import Prepared
from svdiff_delta.svd.shifted_weight import write_shifted
from svdiff_delta.svd.workspace import Workspace

WEIGHTS: dict[str, tuple[Tensor, int]] = {
    "wide": (normal(12, 70), 0),
    "tall": (normal(70, 12), 0),
    "square": (normal(24, 24), 0),
    "one row": (normal(1, 50), 0),
    "a convolution": (normal(8, 30, 3, 3), 0),
    "a convolution with few inputs": (normal(40, 2, 3, 3), 0),
    "a transposed convolution": (normal(30, 8, 2, 2), 1),
    "a transposed convolution with more outputs": (normal(2, 40, 2, 2), 1),
    "a layer stored transposed": (normal(70, 12), 1),
    "tied": (hadamard(16), 0),
    "null": (torch.cat([normal(10, 40), torch.zeros(6, 40)]), 0),
    "steep": (with_spectrum(torch.logspace(0, -5, 48), 48, 90), 0),
    "steep and tall": (with_spectrum(torch.logspace(0, -5, 48), 90, 48), 0),
    "exact in bfloat16": (1e10 * normal(12, 70).bfloat16().float(), 0),
}


def prepared(weight: Tensor, axis: int = 0, kind: Kind = "spectral") -> Prepared:
    dtype, key = fingerprint_stored(weight, "w", axis)
    basis = compute_basis(round_weight(weight, dtype), axis) if kind == "spectral" else None
    runs = find_runs(basis.sigma) if basis else Runs((), 0)
    parameter = Parameter(tuple(weight.shape), kind, axis, dtype, key, runs.tied, runs.null)
    return Prepared(parameter, basis, lambda: weight)


def shift_for(ready: Prepared) -> Tensor:
    """A δ that takes some σ below 0."""
    assert ready.basis is not None
    return projected_shift(ready.basis.sigma, 0.7 * float(ready.basis.sigma.mean()))


def expected(ready: Prepared, shift: Tensor) -> Tensor:
    matrix = matricize(ready.rounded, ready.parameter.axis)
    change = unmatricize(true_delta_weight(matrix, shift), ready.parameter.shape, ready.parameter.axis)
    return ready.weight.double() + change


@pytest.fixture(params=["whole", "in parts"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in parts":
        monkeypatch.setattr(shifted_weight, "BLOCK", 100)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_what_float64_says(name: str) -> None:
    ready = prepared(*WEIGHTS[name])
    shift, target = shift_for(ready), torch.full(ready.parameter.shape, torch.nan)
    write_shifted(ready, shift, target, Workspace())
    # ΔW errs by 2e-6 (spec, section 6.5), and its sum with W by one rounding.
    truth = expected(ready, shift)
    assert float((target - truth).norm()) <= 2e-6 * float((truth - ready.weight).norm()) + 2**-24 * float(truth.norm())


@pytest.mark.parametrize("name", ["a convolution", "a convolution with few inputs", "a transposed convolution"])
@pytest.mark.usefixtures("_blocks")
def test_a_target_may_have_other_strides_and_a_narrower_dtype(name: str) -> None:
    ready = prepared(*WEIGHTS[name])
    plain, shift = torch.empty(ready.parameter.shape), shift_for(ready)
    write_shifted(ready, shift, plain)
    target = torch.empty(ready.parameter.shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    write_shifted(ready, shift, target)
    assert target.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(target, plain.bfloat16())


def test_a_float64_weight_keeps_what_float32_would_lose() -> None:
    weight = normal(6, 9).double() + 1e-12
    ready = prepared(weight)
    target = torch.empty(6, 9, dtype=torch.float64)
    write_shifted(ready, torch.full((6,), 1e-20, dtype=torch.float64), target)
    assert float((target - weight).abs().max()) < 1e-15


def test_a_norm_s_weight_is_summed_in_float64_and_rounded_once() -> None:
    weight = normal(30).bfloat16()
    ready, shift = prepared(weight, kind="elementwise"), normal(30, seed=1).double() * 1e-3
    target = torch.empty(30, dtype=torch.bfloat16)
    write_shifted(ready, shift, target)
    assert torch.equal(target, (weight.double() + shift).bfloat16())


def test_memory_is_two_blocks_whatever_the_weight_s_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifted_weight, "BLOCK", 1000)
    sizes = []
    for columns in (300, 3000):
        ready, space = prepared(normal(10, columns)), Workspace()
        write_shifted(ready, shift_for(ready), torch.empty(10, columns), space)
        sizes.append(sum(kept.numel() for kept in space._kept.values()))
    assert sizes == [1920, 1920]  # a block is 96 columns wide


def test_memory_that_holds_something_else_gives_the_same_bits() -> None:
    space, found = Workspace(), []
    space.take("rows", (10_000,)).fill_(torch.nan)
    space.take("rounded", (10_000,)).fill_(torch.inf)
    for memory in (space, None):
        ready = prepared(*WEIGHTS["steep"])
        target = torch.empty(ready.parameter.shape)
        write_shifted(ready, shift_for(ready), target, memory)
        found.append(target)
    assert torch.equal(*found)


def test_a_small_change_is_there_in_full() -> None:
    ready = prepared(normal(24, 60))
    shift, target = torch.full((24,), 1e-3, dtype=torch.float64), torch.empty(24, 60)
    write_shifted(ready, shift, target)
    change = true_delta_weight(ready.rounded, shift)
    # W + ΔW in float32 loses 2⁻²⁴ of W, which is some 8000 times ΔW.
    assert relative(target - ready.weight, change) < 2e-3
