"""Files of the paper's author: spectral shifts under a parametrization, and norms element by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.older import saved, svdiff_pytorch, whisper
from torch import nn

from svdiff_delta import convert
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.svdiff_author import make_shift
from svdiff_delta.errors import InputError
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import prepare_weight, verify_and_prepare
from svdiff_delta.svd.shifted_weight import delta_weight

KEY = "{}.parametrizations.weight.0.eigenvalues_delta"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return whisper(tmp_path_factory.mktemp("whisper") / "base")


def test_matrices_are_shifted_on_singular_values_and_norms_on_elements(base: Base, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    given = {KEY.format(key): random.standard_normal(12).astype("f4").astype("f8") for key in ("encoder.conv1",)}
    norm = random.standard_normal(12).astype("f4").astype("f8")
    path = saved(tmp_path / "x.safetensors", {**given, KEY.format("encoder.layer_norm"): norm})
    found = convert(path, base=base)
    name = "model.encoder.conv1.weight"
    weight = base.read(name)
    expected = svdiff_pytorch(weight, *given.values()) - weight.double().numpy()
    change = delta_weight(
        verify_and_prepare(base, name, found.delta, BasisCache()), torch.from_numpy(found.delta[name].astype("f8"))
    )
    assert np.linalg.norm(change.double().numpy() - expected) <= 1e-6 * np.linalg.norm(expected)
    assert np.array_equal(found.delta["model.encoder.layer_norm.weight"], norm)
    assert found.delta.metadata.lineage is not None
    assert found.delta.metadata.lineage.record.arguments["from"] == "svdiff-author"


def test_a_norm_of_one_element_is_added_to_and_not_stretched() -> None:
    norm = nn.LayerNorm(1)
    weight = torch.tensor([-2.0])

    class Weights:
        def read(self, name: str) -> torch.Tensor:
            return weight

    assert norm.weight.shape == weight.shape
    prepared = prepare_weight(Weights(), "model.norm.weight", "elementwise", 0, BasisCache(), dtype="F32")
    shift, energy = make_shift(np.array([0.5]), prepared)
    assert (shift.tolist(), energy) == ([0.5], 0.25)


def test_what_else_stands_in_the_file_is_listed(base: Base, tmp_path: Path) -> None:
    more = {"encoder.conv1.parametrizations.weight.original": np.ones((12, 6, 3))}
    path = saved(tmp_path / "x.safetensors", {KEY.format("encoder.conv1"): np.ones(12), **more})
    with pytest.raises(InputError, match=r"weight\.original \(is no shift of the paper's author\)"):
        convert(path, base=base)
    assert list(convert(path, base=base, allow_unmatched=True).left_out) == [*more]
