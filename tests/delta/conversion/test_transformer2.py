"""Transformer²: singular values times z, whose sum stays; z itself, or the numbers whose sigmoid it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.older import saved, transformer2
from transformers import LlamaConfig, LlamaModel

from svdiff_delta import convert, open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import verify_and_prepare
from svdiff_delta.svd.shifted_weight import delta_weight

UP, DOWN = "layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    config = LlamaConfig(
        vocab_size=20, hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("llama") / "base"
    model.to(torch.bfloat16).save_pretrained(folder)
    return open_base(folder)


def random(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(12)


def check(base: Base, found: object, key: str, z: np.ndarray) -> None:
    name = f"model.{key}"
    delta = found.delta  # type: ignore[attr-defined]
    change = delta_weight(
        verify_and_prepare(base, name, delta, BasisCache()), torch.from_numpy(delta[name].astype("f8"))
    )
    weight = base.read(name)
    expected = transformer2(weight, z) - weight.double().numpy()
    assert np.linalg.norm(change.double().numpy() - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("key", [UP, DOWN], ids=["more rows", "more columns"])
def test_learnable_params_are_recognized_and_change_what_they_change_there(
    base: Base, tmp_path: Path, key: str
) -> None:
    logits = torch.from_numpy(random(1) * 0.1).to(torch.bfloat16)
    path = saved(tmp_path / "math.safetensors", {key: logits.double().numpy()}, torch.bfloat16)
    found = convert(path, base=base)
    check(base, found, key, torch.sigmoid(logits).double().numpy())
    assert found.delta.metadata.lineage is not None
    assert found.delta.metadata.lineage.record.arguments["from"] == "transformer2"


def test_factors_themselves_are_read_where_they_are_called_so(base: Base, tmp_path: Path) -> None:
    z = 1 + 0.1 * random(2).astype("f4").astype("f8")
    path = saved(tmp_path / "z.safetensors", {UP: z})
    check(base, convert(path, from_="svf", base=base), UP, z.astype("f4").astype("f8"))
    with pytest.raises(InputError, match=r"z\.safetensors: does not say what it is: give `from_`, one of .*svf"):
        convert(path, base=base)


def test_from_overrides_what_the_numbers_look_like(base: Base, tmp_path: Path) -> None:
    z = np.linspace(1.5, -0.25, 12).astype("f4").astype("f8")  # a negative one: taken for what Transformer² trains
    path = saved(tmp_path / "x.safetensors", {UP: z})
    sigmoid = torch.from_numpy(z).sigmoid().to(torch.bfloat16).double().numpy()
    check(base, convert(path, base=base), UP, sigmoid)
    found = convert(path, from_="svf", base=base).delta[f"model.{UP}"]
    sigma = np.linalg.svd(base.read(f"model.{UP}").double().numpy(), compute_uv=False)
    assert np.allclose(found, sigma * (sigma.sum() / (sigma @ z) * z - 1), rtol=1e-6)


def test_a_negative_factor_turns_a_vector_round_which_no_shift_can(base: Base, tmp_path: Path) -> None:
    z = np.ones(12)
    z[0] = -0.5
    found = convert(saved(tmp_path / "z.safetensors", {UP: z}), from_="svf", base=base)
    sigma = np.linalg.svd(base.read(f"model.{UP}").double().numpy(), compute_uv=False)
    change = sigma * (sigma.sum() / (sigma @ z) * z - 1)
    assert found.captured == pytest.approx(1 - (change[0] ** 2 - sigma[0] ** 2) / (change @ change), rel=1e-5)


def test_factors_that_cancel_are_refused_by_name(base: Base, tmp_path: Path) -> None:
    path = saved(tmp_path / "z.safetensors", {UP: -np.ones(12)})
    with pytest.raises(InputError, match=rf"^model\.{UP}: .*Σσz = -.*z\.safetensors"):
        convert(path, from_="svf", base=base)


def test_a_norm_and_a_key_without_a_weight_are_listed(base: Base, tmp_path: Path) -> None:
    shifts = {UP: random(3), "layers.0.input_layernorm.weight": random(4), "learnable_params_module_list.0": random(5)}
    found = convert(saved(tmp_path / "x.safetensors", shifts), from_="transformer2", base=base, allow_unmatched=True)
    assert found.left_out == {
        "learnable_params_module_list.0": "is no shift of Transformer²",
        "model.layers.0.input_layernorm.weight": "is of a class that Transformer² does not shift",
    }
