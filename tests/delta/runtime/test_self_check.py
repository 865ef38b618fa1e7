"""`attach(check=True)`: the next forward compares every shifted layer with W + ΔW, and misses none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.live import CASES, delta_of, double_copy, relative, run, tiny, zero_of
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.errors import AttachError
from svdiff_delta.runtime import attach
from svdiff_delta.runtime.norm_shift import NormShift
from svdiff_delta.runtime.spectral_shift import SpectralShift

FORMS: dict[str, dict[str, Any]] = {
    "live": {},
    "exact": {"exact": True},
    "fused": {"mode": "fused"},
    "trained": {"trainable": True},
}


def pending(handle: Any) -> int:
    """How many hooks a check still has on the model."""
    return sum(len(end._exit_callbacks) for end in handle._board._check._ends.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_real_models_pass_and_are_watched_no_longer(name: str, form: str) -> None:
    model = tiny(name)
    with attach(model, delta_of(name), check=True, **FORMS[form]) as handle:
        run(model, name)
        assert pending(handle) == 0
    assert not any("svdiff_read" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["UNet", "Flux"])
def test_where_delta_is_0_a_delta_of_the_check_s_own_is_taken_back(name: str) -> None:
    model = tiny(name)
    expected = run(model, name)
    with attach(model, zero_of(name), check=True, exact=True):
        assert relative(run(model, name), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.LayerNorm(32), nn.Linear(32, 8)).to(dtype)
    with attach(model, random_delta(live_zero(model)), check=True) as handle:
        model(normal(64, 24).to(dtype))
        assert pending(handle) == 0


class Bypassed(nn.Module):
    """Runs a copy of a layer's weight in the layer's place, as fused projections do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.copied = self.second.weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x), self.copied)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_is_never_called_is_named(form: str) -> None:
    model = Bypassed()
    with attach(model, random_delta(live_zero(model)), check=True, **FORMS[form]):
        message = (
            r"model\.second\.weight: the forward has neither called.*\(1 of 2 shifted layers: .*leave such layers out"
        )
        with pytest.raises(AttachError, match=message):
            model(normal(2, 8))


def test_the_check_goes_on_until_a_forward_has_passed_it() -> None:
    model = Bypassed()
    with attach(model, random_delta(live_zero(model)), check=True):
        for _ in range(2):
            with pytest.raises(AttachError, match="neither called"):
                model(normal(2, 8))


@pytest.mark.parametrize(
    ("layer", "shift", "x"),
    [(nn.Linear(8, 8), SpectralShift, normal(3, 8)), (nn.LayerNorm(8), NormShift, normal(3, 8))],
    ids=["linear", "norm"],
)
@pytest.mark.parametrize("size", [0.0, 0.3])
def test_a_layer_that_computes_something_else_is_named(
    layer: nn.Module, shift: Any, x: Tensor, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = named(layer)
    delta = random_delta(live_zero(model), size=size)
    before = shift.call
    # Half of δ is lost, which shows in no shape and in no NaN.
    monkeypatch.setattr(shift, "call", lambda self, module, gain, *args: before(self, module, gain * 0.5, *args))
    with (
        attach(model, delta, check=True, exact=True),
        pytest.raises(AttachError, match=r"model\.layer\.weight: .* does not compute with W \+ ΔW here, it is off"),
    ):
        model(x)


def test_nan_does_not_pass() -> None:
    model = named(nn.Linear(8, 8))
    with attach(model, random_delta(live_zero(model)), check=True):
        model.layer.svdiff_shift.outer.fill_(torch.nan)
        with pytest.raises(AttachError, match="does not compute with"):
            model(normal(3, 8))


def test_a_detached_model_is_checked_no_more() -> None:
    model = Bypassed()
    attach(model, random_delta(live_zero(model)), check=True).detach()
    model(normal(2, 8))
    assert not model._forward_hooks


def test_a_delta_that_was_swapped_meanwhile_is_what_is_compared() -> None:
    model = named(nn.Linear(8, 8))
    first, second = (random_delta(live_zero(model), size=0.5, seed=seed) for seed in (1, 2))
    expected = double_copy(model, second)(normal(3, 8).double())
    with attach(model, first, check=True, exact=True) as handle:
        handle.swap(second)
        assert relative(model(normal(3, 8)), expected) < 1e-5
        assert pending(handle) == 0
