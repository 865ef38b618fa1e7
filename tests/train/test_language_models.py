"""Shifts of a language model trained in transformers' own Trainer, as the example does it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.models import MINILM

from svdiff_delta import load, open_base
from svdiff_delta.svd.verify import verify_base

EXAMPLE = Path(__file__).parents[2] / "examples" / "sentence_encoder.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sentence_encoder", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_trainer_lowers_the_loss_and_the_shifts_are_a_delta_of_the_base(
    example: ModuleType, tmp_path: Path
) -> None:
    losses = example.fine_tune(MINILM, tmp_path / "pairs.safetensors", 4)
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    delta = load(tmp_path / "pairs.safetensors")
    assert all(np.any(delta[name]) for name in delta)
    verify_base(open_base(MINILM), [delta])
