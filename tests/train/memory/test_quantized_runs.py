"""Runs on a base whose frozen weights are quantized: every scheme that a run file can name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from svdiff_delta import attach, load, save
from svdiff_delta.runtime.quantized import quantized_weight
from svdiff_train.families import family_of
from svdiff_train.memory.quantization import SCHEMES, quantize
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import Quantization, TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train

pytestmark = pytest.mark.quantized

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(prompt="a photo of a sks cat", selectors=("unet-ca-kv",), steps=2, learning_rate=5e-2)


@pytest.mark.parametrize("name", ["nf4", "int8", "qint4"])  # one of each library; attaching has tests of all schemes
def test_a_run_trains_a_delta_of_the_unquantized_base(name: Quantization, tmp_path: Path) -> None:
    outcome = train(open_tiny(), PICTURES, replace(CONFIG, quantization=name))
    assert (outcome.delta.metadata.training or {})["quantization"] == name
    assert all(outcome.delta[each].any() for each in outcome.delta)
    save(outcome.delta, tmp_path / "cat.safetensors")
    pipeline = load_pipeline(open_tiny())
    with attach(pipeline, load(tmp_path / "cat.safetensors")):
        pass  # it is one of the base itself


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_all_linear_layers_of_the_denoiser_are_quantized_and_nothing_else(name: Quantization) -> None:
    family = family_of(load_pipeline(open_tiny()))
    linear = {key for key, module in family.denoiser.named_modules() if isinstance(module, torch.nn.Linear)}
    quantize(family.denoiser, name, torch.float32)
    found = {key for key, module in family.denoiser.named_modules() if quantized_weight(module) is not None}
    assert found == linear


def test_a_quantized_run_goes_on_bit_for_bit_and_is_no_other(tmp_path: Path) -> None:
    config, keeping = replace(CONFIG, quantization="qint8"), Keeping(folder=tmp_path, every=1, resume=True)
    train(open_tiny(), PICTURES, replace(config, steps=1), keeping=keeping)
    again, whole = train(open_tiny(), PICTURES, config, keeping=keeping), train(open_tiny(), PICTURES, config)
    plain = train(open_tiny(), PICTURES, CONFIG)
    for name, shift in whole.delta.items():
        assert (again.delta[name] == shift).all()
        assert (plain.delta[name] != shift).any()
    assert cast("Any", again.config).quantization == "qint8"
