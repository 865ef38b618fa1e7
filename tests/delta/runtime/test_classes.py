"""Real model classes compute with the shifted weights, live and fused, and are what they were afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.live import CASES, delta_of, double_copy, relative, run, tiny

from svdiff_delta.runtime import attach

MODES: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_with_the_shifted_weights(name: str, mode: str) -> None:
    model, delta = tiny(name), delta_of(name)
    before, expected = run(model, name), run(double_copy(model, delta), name)
    with attach(model, delta, **MODES[mode]):
        # What rounding of every product and norm adds up to, which grows with depth.
        assert relative(run(model, name), expected) < 2e-5
    assert relative(before, expected) > 0.01


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_detaching_restores_every_weight_bit_for_bit(name: str, mode: str) -> None:
    model = tiny(name)
    before, expected = {key: value.clone() for key, value in model.state_dict().items()}, run(model, name)
    attach(model, delta_of(name), **MODES[mode]).detach()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(run(model, name), expected)
