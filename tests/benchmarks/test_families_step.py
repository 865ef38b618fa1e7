"""The script that times a step of each family's denoiser measures the layers and the calls that it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from svdiff_train.families import FAMILIES


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("families_step")


def test_both_ways_train_the_same_layers_and_take_steps(script: Any) -> None:
    transformer = script.TINY["tiny Wan 2.2"]().transformer
    layers = [transformer.get_submodule(name) for name in script.layers_of(transformer)]
    assert {type(layer) for layer in layers} == {nn.Linear, nn.Conv3d}
    sides = [(layer.weight.shape[0], layer.weight[0].numel()) for layer in layers]
    found = script.measured(script.tiny_ways("tiny Wan 2.2"), 1)
    assert found["svdiff"].trained == 2 * sum(min(pair) for pair in sides)  # both experts
    convolved = sum(script.RANK * sum(pair) for pair in sides)
    assert found["lora"].trained == 2 * convolved
    assert all(each.seconds > 0 and each.operations > 0 for each in found.values())


def test_what_has_a_limit_is_the_ratio_of_times_over_that_of_operations(script: Any) -> None:
    found = {"svdiff": script.Found(3.0, 150, 1), "lora": script.Found(2.0, 100, 1)}
    assert script.ratios(found).figure == 1.0
    found["svdiff"] = script.Found(4.4, 150, 1)
    assert script.ratios(found).figure == pytest.approx(2.2 / 1.5)


def test_every_family_is_measured(script: Any) -> None:
    made = {type(make()).__name__ for make in script.TINY.values()}
    assert made == set(FAMILIES)
