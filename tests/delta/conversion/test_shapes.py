"""Adapters whose tensors have any shapes: each is read to a change of the weight's own shape, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.adapters import save_tensors
from support.checkpoints import bert
from support.laws import law

from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.dialect import Job, WeightChange
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.conversion.module_keys import CORES, LOHA, LOKR, LORA
from svdiff_delta.errors import DeltaError
from svdiff_delta.svd.cache import BasisCache

PATH = "encoder.layer.0.attention.self.query"  # 16 x 16
OTHER = "encoder.layer.0.attention.self.key"
SHAPES = [(16, 2), (2, 16), (16, 16), (2, 2), (4, 4), (2, 2, 1, 1), (16, 2, 1, 1), (16,), (2,), (1,), (), (0, 16)]
LYCORIS = sorted({*LORA, *LOHA, *CORES, *LOKR, "lora_mid.weight", "dora_scale", "alpha", "diff", "diff_b", "w_norm"})
PEFT = sorted(
    ["lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_B.bias"]
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return bert(tmp_path_factory.mktemp("bert") / "base")


def tensors(suffixes: list[str]) -> st.SearchStrategy[dict[str, tuple[int, ...]]]:
    return st.dictionaries(st.sampled_from(suffixes), st.sampled_from(SHAPES), min_size=2)


def outcome(path: Path, dialect: str, base: Base) -> dict[str, object] | str:
    """Return ΔW by parameter, or what a refusal says."""
    read = DIALECTS[dialect].read
    assert read is not None
    try:
        changes = read(OpenedAdapter(str(path)), Job(base, BasisCache()))
        return {name: changes.read(name) for name in changes.kinds}
    except DeltaError as error:
        return error.message


def check(path: Path, dialect: str, base: Base) -> None:
    """An adapter with one good module beside one that may be broken is read as a whole, or that one is named."""
    found = outcome(path, dialect, base)
    if isinstance(found, str):
        assert PATH in found.replace("_", ".")
        return
    assert f"model.{OTHER}.weight" in found
    for name, change in found.items():
        assert isinstance(change, WeightChange)
        assert change.values.shape == base.shape(name)


@law
@given(tensors(LYCORIS))
@example({"lora_up.weight": (16, 2), "lora_down.weight": ()})
@example({"lokr_w1": (4, 4), "lokr_w2": (4, 4), "lokr_t2": (2, 2, 1, 1)})
@example({"hada_w1_a": (16, 2), "hada_w1_b": (2, 16), "hada_w2_a": (16, 2), "hada_w2_b": (16, 16)})
def test_lycoris(tmp_path_factory: pytest.TempPathFactory, base: Base, shapes: dict[str, tuple[int, ...]]) -> None:
    flat, other = (f"lycoris_{path.replace('.', '_')}" for path in (PATH, OTHER))
    broken = {f"{flat}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    check(save_tensors(path, {**broken, f"{other}.diff": torch.ones(16, 16)}), "lycoris", base)


@law
@given(tensors(PEFT))
def test_peft(tmp_path_factory: pytest.TempPathFactory, base: Base, shapes: dict[str, tuple[int, ...]]) -> None:
    broken = {f"{PATH}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}
    good = {f"{OTHER}.lora_A.weight": torch.ones(2, 16), f"{OTHER}.lora_B.weight": torch.ones(16, 2)}
    folder = tmp_path_factory.mktemp("x")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2}')
    save_file({**broken, **good}, folder / "adapter_model.safetensors")
    check(folder, "peft", base)


@law
@given(tensors(PEFT))
def test_diffusers(tmp_path_factory: pytest.TempPathFactory, base: Base, shapes: dict[str, tuple[int, ...]]) -> None:
    broken = {f"model.{PATH}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}
    good = {f"model.{OTHER}.lora_A.weight": torch.ones(2, 16), f"model.{OTHER}.lora_B.weight": torch.ones(16, 2)}
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    check(save_tensors(path, {**broken, **good}), "diffusers", base)
