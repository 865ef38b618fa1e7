"""Tied weights, baked: both names show the shifted weight, and transformers finds them tied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.models import base_delta

from svdiff_delta.bake import bake
from svdiff_delta.base import open_base

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
