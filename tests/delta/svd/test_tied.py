"""Tied weights: baked they stay tied, and live both layers are shifted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.models import base_delta

from svdiff_delta import Delta, attach
from svdiff_delta.baking.bake import bake
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import AttachError

EMBEDDINGS, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=48, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("name", [EMBEDDINGS, OUTPUT])
@pytest.mark.parametrize("twice", [False, True])
def test_a_tied_weight_is_baked_once_and_stays_tied(folder: Path, tmp_path: Path, name: str, twice: bool) -> None:
    before = load_file(folder / "model.safetensors")
    if twice:
        both = {**before, OUTPUT: before[EMBEDDINGS].clone()}
        save_file(both, folder / "model.safetensors", {"format": "pt"})
    base = open_base(folder)
    delta = base_delta(base, f"model.{name}", size=0.5)
    assert list(delta) == [f"model.{EMBEDDINGS}"]
    bake(base, [delta], tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(after[EMBEDDINGS], before[EMBEDDINGS])
    assert all(torch.equal(after[key], after[EMBEDDINGS]) for key in (OUTPUT,) if twice)
    assert (OUTPUT in after) == twice
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, after[EMBEDDINGS])


IDS = torch.tensor([[1, 7, 41, 3, 9]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_a_tied_weight_is_shifted_live_in_both_layers(folder: Path, tmp_path: Path, exact: bool) -> None:
    base = open_base(folder)
    delta = base_delta(base, f"model.{EMBEDDINGS}", size=0.2)
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    before = logits(model)
    with attach(model, delta, base=base, exact=exact) as handle:
        attached = logits(model)
        handle.set_scale(0.0)
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model), before)
    bake(base, [delta], tmp_path / "out")
    baked = logits(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval())
    assert (attached - baked).norm() < 1e-3 * (baked - before).norm()


def test_what_is_trained_in_tied_layers_is_one_parameter_with_the_gradients_of_both(folder: Path) -> None:
    base = open_base(folder)
    delta = base_delta(base, f"model.{EMBEDDINGS}", size=0.2)
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    with attach(model, delta, base=base, exact=True, trainable=True) as handle:
        ((name, value),) = handle.parameters()
        loss = model(IDS).logits.square().mean()
        loss.backward()
        grad = value.grad
        assert grad is not None
        step = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        slope, width = float((grad * step).sum()), 1e-3
        found = []
        for sign in (-1, 1):
            with torch.no_grad():
                value.add_(sign * width * step)
                found.append(float(model(IDS).logits.double().square().mean()))
                value.sub_(sign * width * step)
    assert name == f"model.{EMBEDDINGS}"
    assert (found[1] - found[0]) / (2 * width) == pytest.approx(slope, rel=0.02)


def test_two_names_of_one_live_weight_are_refused(folder: Path) -> None:
    base = open_base(folder)
    delta = base_delta(base, f"model.{EMBEDDINGS}", size=0.2)
    names = [f"model.{EMBEDDINGS}", f"model.{OUTPUT}"]
    parameters = dict.fromkeys(names, delta.metadata.parameters[names[0]])
    twice = Delta(dict.fromkeys(names, delta[names[0]]), replace(delta.metadata, parameters=parameters))
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with pytest.raises(AttachError, match="shifts the same weight as"):
        attach(model, twice, base=base)
