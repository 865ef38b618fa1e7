"""Rebase: δ on another base, by formulas of NumPy alone; bit for bit where the weight is the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import bert, changed, delta_of, single, true_change, true_shift
from support.models import base_delta
from support.weights import hadamard, normal, with_spectrum
from torch import Tensor

from svdiff_delta import Delta, load, open_base, rebase, save, scale
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, BaseMismatchError, InputError
from svdiff_delta.format.file import dumps, file_digest
from svdiff_delta.ops.replay import replay

SIGMA = torch.linspace(3, 1, 8)
A, B, NORM = "model.a.weight", "model.b.weight", "model.norm.weight"


def weights(seed: int = 0) -> dict[str, Tensor]:
    """A wide, a tall and a norm weight, exact in float16."""
    return {
        "a": with_spectrum(SIGMA, 8, 14, seed).half().float(),
        "b": with_spectrum(SIGMA, 14, 8, seed + 7).half().float(),
        "norm": normal(5, seed=seed).half().float(),
    }


def near(weight: Tensor, size: float = 0.1) -> Tensor:
    """The same weight, tuned a little."""
    return (weight + size * normal(*weight.shape, seed=11)).half().float()


@pytest.fixture
def old(tmp_path: Path) -> Base:
    return single(tmp_path / "old.safetensors", **weights())


@pytest.fixture
def delta(old: Base) -> Delta:
    draw = np.random.default_rng(0)
    shifts = {"a": draw.standard_normal(8), "b": draw.standard_normal(8), "norm": draw.standard_normal(5)}
    return delta_of(old, **{name: shift * 0.3 for name, shift in shifts.items()})


def new_base(tmp_path: Path, **changes: Tensor) -> Base:
    return single(tmp_path / "new.safetensors", **{**weights(), **changes})


@pytest.mark.parametrize("name", [A, B])
def test_the_result_is_the_float64_formula(old: Base, delta: Delta, tmp_path: Path, name: str) -> None:
    key = name.split(".")[1]
    new = new_base(tmp_path, **{key: near(old.read(name))})
    found = rebase(delta, old, new)
    change = true_change(old.read(name), delta[name])
    expected = true_shift(new.read(name), change)
    assert np.linalg.norm(found.delta[name] - expected) <= 1e-6 * np.linalg.norm(delta[name])
    energy = found.layers[name]
    assert energy.whole == pytest.approx(float(change.square().sum()), rel=1e-6)
    assert energy.captured == pytest.approx(float(expected @ expected) / energy.whole, rel=1e-6)
    assert 0.5 < energy.captured < 1


def test_a_clipped_shift_counts_as_what_it_does_on_the_old_base(old: Base, tmp_path: Path) -> None:
    new = new_base(tmp_path, a=near(old.read(A), 1e-2))
    deep, sigma = (delta_of(old, a=shift) for shift in (np.full(8, -50.0), -SIGMA.numpy().astype("f8")))
    a, b = (rebase(given, old, new).delta[A] for given in (deep, sigma))
    assert np.allclose(a, b, rtol=0, atol=2e-3)  # float16 moved σ by that much
    lowest = -np.linalg.svd(new.read(A).double().numpy(), compute_uv=False)
    assert (a >= lowest - 1e-6).all()


def test_on_the_same_weight_delta_is_carried_over_bit_for_bit(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = new_base(tmp_path, a=near(old.read(A)))
    given = Delta(dict(delta), delta.metadata, dtypes={A: "F16", B: "BF16", NORM: "I8"})
    found = rebase(given, old, new)
    assert found.unchanged == 2
    assert (found.delta.stored[B], found.delta.stored[NORM]) == (given.stored[B], given.stored[NORM])
    assert found.delta.metadata.parameters[B] == delta.metadata.parameters[B]
    assert found.delta.dtypes == {A: "F32", B: "BF16", NORM: "I8"}
    assert found.delta.metadata.parameters[A].fingerprint != delta.metadata.parameters[A].fingerprint


def test_on_the_same_base_everything_is_carried_over(old: Base, delta: Delta) -> None:
    found = rebase(delta, old, old)
    assert (found.unchanged, found.captured) == (len(delta), 1.0)
    assert {name: found.delta.stored[name].data for name in delta} == {name: delta.stored[name].data for name in delta}
    assert found.delta.metadata.parameters == delta.metadata.parameters


def test_the_float16_variant_of_a_base_is_the_same_base(old: Base, delta: Delta, tmp_path: Path) -> None:
    halves = {key: weight.half() for key, weight in load_file(old.path).items()}
    save_file(halves, tmp_path / "half.safetensors")
    assert rebase(delta, old, open_base(tmp_path / "half.safetensors")).unchanged == len(delta)


def test_a_norm_weight_keeps_its_shift_on_another_norm(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = new_base(tmp_path, norm=near(old.read(NORM)))
    found = rebase(delta, old, new)
    assert found.delta.stored[NORM] == delta.stored[NORM]
    assert found.layers[NORM].captured == 1
    assert found.delta.metadata.parameters[NORM].fingerprint != delta.metadata.parameters[NORM].fingerprint


def test_the_result_is_projected_on_the_new_base_s_runs(tmp_path: Path) -> None:
    one_row = torch.zeros(4, 4)
    one_row[0] = 2
    old = single(tmp_path / "old.safetensors", a=normal(4, 4).half().float(), b=normal(4, 4, seed=1).half().float())
    new = single(tmp_path / "new.safetensors", a=hadamard(4), b=one_row)
    found = rebase(delta_of(old, a=np.ones(4), b=np.ones(4)), old, new).delta
    parameters = found.metadata.parameters
    assert (parameters[A].tied, parameters[B].null) == (((0, 3),), 3)
    assert (found[A] == found[A][0]).all()
    assert found[A][0] != 0
    assert not found[B][1:].any()


def test_there_and_back_on_scaled_weights_gives_delta_again(old: Base, delta: Delta, tmp_path: Path) -> None:
    # Twice a weight has the same singular vectors, so nothing is lost.
    new = single(tmp_path / "new.safetensors", **{name: 2 * weight for name, weight in weights().items()})
    there = rebase(delta, old, new)
    assert there.captured == pytest.approx(1, abs=1e-6)
    back = rebase(there.delta, new, old).delta
    for name in delta:
        assert np.linalg.norm(back[name] - delta[name]) <= 1e-5 * np.linalg.norm(delta[name])


def test_a_parameter_without_shift_stays_without(old: Base, tmp_path: Path) -> None:
    found = rebase(delta_of(old, a=np.zeros(8)), old, new_base(tmp_path, a=near(old.read(A))))
    assert not found.delta[A].any()
    assert found.captured == 1


# --- What the result says ---


def test_the_result_says_the_new_base_and_how_it_was_made(tmp_path: Path) -> None:
    bert(tmp_path / "a")
    changed(tmp_path / "a", tmp_path / "b", {"encoder.layer.0.output.dense.weight": near})
    old = open_base(tmp_path / "a", repository="owner/old", revision="1")
    new = open_base(tmp_path / "b", repository="owner/new", revision="2")
    delta = base_delta(old, "model.encoder.layer.0.output.*")
    told = replace(delta.metadata, training={"steps": 5}).with_title("Dog")
    delta = Delta(dict(delta), replace(told, base=replace(told.base, extra={"org.example.x": 1})))
    found = rebase(delta, old, new)
    metadata = found.delta.metadata
    assert (metadata.base.repository, metadata.base.revision) == ("owner/new", "2")
    assert metadata.base.components == {"model": "BertModel"}
    assert metadata.base.extra == {"org.example.x": 1}
    assert (metadata.title, metadata.training) == ("Dog", {"steps": 5})
    assert metadata.modelspec["architecture"] == "BertModel/svdiff"
    assert metadata.lineage is not None
    sha256, source = file_digest(delta)
    assert metadata.lineage.record.inputs == (sha256,)
    assert metadata.lineage.files == {sha256: source}
    assert metadata.lineage.record.arguments == {
        "captured": round(found.captured, 6),
        "old_base": {"repository": "owner/old", "revision": "1"},
    }


def test_the_result_is_a_valid_file_for_the_new_base(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = new_base(tmp_path, a=near(old.read(A)))
    save(rebase(delta, old, new, dtype="F16").delta, tmp_path / "out.safetensors")
    found = load(tmp_path / "out.safetensors")
    assert dumps(found) == (tmp_path / "out.safetensors").read_bytes()
    assert found.metadata.lineage is not None
    assert found.metadata.lineage.record.arguments["dtype"] == "F16"
    assert rebase(found, new, new).unchanged == len(delta)


def test_a_rebase_is_not_replayed_from_files_alone(old: Base, delta: Delta, tmp_path: Path) -> None:
    save(delta, tmp_path / "delta.safetensors")
    save(rebase(delta, old, new_base(tmp_path, a=near(old.read(A)))).delta, tmp_path / "out.safetensors")
    with pytest.raises(InputError, match=r"^rebase: cannot be repeated from files alone, it takes the weights"):
        replay(tmp_path / "out.safetensors", tmp_path)
    save(scale(load(tmp_path / "out.safetensors"), 0.5), tmp_path / "half.safetensors")
    assert replay(tmp_path / "half.safetensors", tmp_path).same


# --- What is refused ---


def test_another_old_base_is_refused_by_the_parameter_s_name(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = new_base(tmp_path, b=near(old.read(B)))
    with pytest.raises(BaseMismatchError, match=r"^model\.b\.weight: the delta was made for another base"):
        rebase(delta, new, old)


def test_an_old_base_that_lacks_a_parameter_is_refused(old: Base, delta: Delta, tmp_path: Path) -> None:
    part = single(tmp_path / "part.safetensors", a=old.read(A))
    with pytest.raises(BaseError, match=r"^model\.b\.weight: .* has no such parameter"):
        rebase(delta, part, old)


def test_parameters_that_the_new_base_lacks_are_named_and_refused(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = single(tmp_path / "new.safetensors", a=old.read(A), norm=torch.ones(6))
    reasons = {B: "is not in the new base", NORM: "has shape [5], in the new base [6]"}
    with pytest.raises(InputError, match=r"^the delta: 2 weights cannot be carried over: ") as caught:
        rebase(delta, old, new)
    assert all(f"{name} ({reason})" in str(caught.value) for name, reason in reasons.items())
    found = rebase(delta, old, new, allow_unmatched=True)
    assert found.left_out == reasons
    assert list(found.delta) == [A]
    assert found.delta.metadata.lineage is not None
    assert found.delta.metadata.lineage.record.arguments["left_out"] == 2


def test_a_new_base_with_nothing_in_common_is_refused(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = single(tmp_path / "new.safetensors", other=torch.ones(2, 2))
    with pytest.raises(InputError, match="has none of the delta's parameters"):
        rebase(delta, old, new, allow_unmatched=True)


def test_a_least_energy_that_is_not_reached_is_refused(old: Base, tmp_path: Path) -> None:
    given = delta_of(old, a=np.ones(8))
    new = new_base(tmp_path, a=with_spectrum(SIGMA, 8, 14, seed=50).half().float())
    captured = rebase(given, old, new).captured
    assert captured < 0.5
    with pytest.raises(InputError, match="of the change is captured, less than the least share of 50"):
        rebase(given, old, new, min_energy=0.5)
    assert rebase(given, old, new, min_energy=captured).captured == captured


def test_a_new_weight_that_is_not_finite_is_named(old: Base, delta: Delta, tmp_path: Path) -> None:
    new = new_base(tmp_path, a=torch.full((8, 14), float("nan")))
    with pytest.raises(BaseError, match=r"^model\.a\.weight: the base's weight holds NaN or infinity"):
        rebase(delta, old, new)


def test_a_base_in_one_file_is_the_component_that_is_shifted(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    shutil.copy(tmp_path / "bert" / "model.safetensors", tmp_path / "one.safetensors")
    base = open_base(tmp_path / "bert", component="text_encoder")
    delta = base_delta(base, "text_encoder.encoder.layer.0.output.*")
    found = rebase(delta, base, open_base(tmp_path / "one.safetensors"))
    assert found.unchanged == len(delta)
    assert found.delta.metadata.base.components == {"text_encoder": "BertModel"}
