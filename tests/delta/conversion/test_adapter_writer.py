"""A delta as low-rank factors: the best of their rank, without a decomposition, in files that say what they are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.adapters import kohya_changes, read_changes, true_changes, weights_file
from support.checkpoints import delta_of, document
from support.files import listing

from svdiff_delta import Delta, convert, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.dialect import WeightChange
from svdiff_delta.errors import InputError
from svdiff_delta.svd import cache as cache_module
from svdiff_delta.svd.cache import BasisCache

DIALECTS = ("peft", "diffusers", "kohya", "comfyui", "lycoris")
KEY = "svdiff.adapter"
ALL = 100_000


def clipped(base: Base, delta: Delta, name: str) -> np.ndarray:
    """Return max(δ, −σ), which is what comes back."""
    parameter = delta.metadata.parameters[name]
    basis = BasisCache().get(parameter.fingerprint) if parameter.kind == "spectral" else None
    return delta[name] if basis is None else np.maximum(delta[name], -basis.sigma.numpy())


# --- The factors ---


@pytest.mark.parametrize("rank", [1, 5, 64])
def test_the_error_is_the_smallest_of_its_rank_by_the_svd_of_the_change(
    tiny: Base, delta: Delta, rank: int, tmp_path: Path
) -> None:
    found = convert(delta, to="kohya", base=tiny, rank=rank, output=tmp_path / "x.safetensors")
    written = kohya_changes(tmp_path / "x.safetensors")
    for name, change in true_changes(tiny, delta).items():
        copy = written[f"lora_unet_{name.removeprefix('unet.').removesuffix('.weight').replace('.', '_')}"]
        sigma = torch.linalg.svdvals(change.flatten(1))
        optimum = float(sigma[rank:].square().sum().sqrt())
        error = float((change.flatten(1) - copy.flatten(1)).norm())
        assert error == pytest.approx(optimum, rel=1e-5), name
        stated = found.layers[name]
        assert ((stated.whole - stated.kept) ** 0.5) == pytest.approx(optimum, rel=1e-5), name


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the decompositions that were run, in order."""
    calls: list[str] = []

    def count(home: Any, name: str) -> None:
        plain = getattr(home, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return plain(*arguments, **options)

        monkeypatch.setattr(home, name, counted)

    for name in ("svd", "svdvals", "eigh", "eigvalsh", "qr", "eig"):
        for home in (torch.linalg, np.linalg):
            if hasattr(home, name):
                count(home, name)
    for name in ("svd", "svd_lowrank", "pca_lowrank"):
        count(torch, name)
    return calls


def test_no_decomposition_is_run_once_the_bases_are_there(
    tiny: Base, delta: Delta, decompositions: list[str], tmp_path: Path
) -> None:
    for dialect in DIALECTS:
        assert convert(delta, to=dialect, base=tiny, rank=8).size
    assert decompositions == []
    one = select(delta, next(iter(delta)))
    convert(one, to="kohya", base=tiny, rank=8, cache=BasisCache(tmp_path / "empty"))
    assert len(decompositions) >= 1  # what a cold cache costs is counted, so the count above means something


def test_both_sides_have_an_even_share(base: Base, tmp_path: Path) -> None:
    shift = np.linspace(-0.5, 2, 12)
    convert(delta_of(base, a=shift, b=shift), to="peft", base=base, rank=ALL, output=tmp_path / "x")
    tensors = load_file(tmp_path / "x" / "adapter_model.safetensors")
    for name in ("a", "b"):
        up = tensors[f"base_model.model.{name}.lora_B.weight"]
        down = tensors[f"base_model.model.{name}.lora_A.weight"]
        ordered = torch.from_numpy(np.sort(np.abs(shift))[::-1].copy()).float()
        assert torch.allclose(up.norm(dim=0).square(), ordered, rtol=1e-5)
        assert torch.allclose(down.norm(dim=1).square(), ordered, rtol=1e-5)


def test_the_largest_changes_are_kept_and_not_the_largest_shifts(base: Base, tmp_path: Path) -> None:
    shift = np.zeros(12)
    shift[11], shift[0] = -50, 1.5  # σ₁₂ is 1, so that Δσ there is −1
    convert(delta_of(base, a=shift), to="peft", base=base, rank=1, output=tmp_path / "x")
    tensors = load_file(tmp_path / "x" / "adapter_model.safetensors")
    up, down = (tensors[f"base_model.model.a.lora_{side}.weight"].double() for side in "BA")
    assert float((up @ down).norm()) == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize(("energy", "most", "rank"), [(0.5, None, 1), (0.8, None, 2), (0.81, None, 3), (0.99, 3, 3)])
def test_energy_takes_the_least_rank_that_retains_it(base: Base, energy: float, most: int | None, rank: int) -> None:
    shift = np.zeros(12)
    shift[[2, 5, 7, 9]] = [1.0, -0.5, 0.5, 0.25]  # of 25 parts: 16, 4, 4, 1
    found = convert(delta_of(base, a=shift), to="peft", base=base, energy=energy, max_rank=most)
    assert found.ranks == {"model.a.weight": rank}
    assert found.captured == pytest.approx({1: 16 / 25, 2: 20 / 25, 3: 24 / 25}[rank])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rank_1_is_the_largest_change_alone_and_a_rank_above_k_is_the_whole(
    tiny: Base, delta: Delta, dialect: str, tmp_path: Path
) -> None:
    (name,) = given = select(delta, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    count, whole = given.metadata.parameters[name].size, true_changes(tiny, given)[name]
    sigma = torch.linalg.svdvals(whole)
    for rank, error in ((1, float(sigma[1:].norm())), (count + 1, 0.0)):
        found = convert(given, to=dialect, base=tiny, rank=rank, output=tmp_path / f"{rank}")
        assert found.ranks == {name: min(rank, count)}
        copy = read_changes(tmp_path / f"{rank}", dialect, tiny).read(name)
        assert isinstance(copy, WeightChange)
        assert float((copy.values - whole).norm()) == pytest.approx(error, abs=1e-6 * float(sigma.norm()))


def test_a_rank_above_what_changes_is_cut(base: Base) -> None:
    shift = np.zeros(12)
    shift[:3] = 1
    found = convert(delta_of(base, a=shift, b=np.zeros(12)), to="peft", base=base, rank=ALL)
    assert found.ranks == {"model.a.weight": 3}
    assert (found.captured, found.unchanged) == (1.0, 1)


# --- There and back ---


@pytest.mark.parametrize("dialect", DIALECTS)
def test_at_full_rank_the_delta_comes_back(
    tiny: Base, whole: Delta, delta: Delta, dialect: str, tmp_path: Path
) -> None:
    given = whole if dialect == "lycoris" else delta
    convert(given, to=dialect, base=tiny, rank=ALL, output=tmp_path / "x.safetensors")
    back = convert(tmp_path / "x.safetensors", base=tiny)
    assert list(back.delta) == list(given)
    for name in given:
        expected = clipped(tiny, given, name)
        assert np.linalg.norm(back.delta[name] - expected) <= 1e-5 * np.linalg.norm(expected), name
    assert back.delta.metadata.parameters == given.metadata.parameters
    assert back.captured == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_dialect_becomes_another_by_way_of_the_delta(
    tiny: Base, delta: Delta, dialect: str, tmp_path: Path
) -> None:
    convert(delta, to=dialect, base=tiny, rank=4, output=tmp_path / "first")
    other = "kohya" if dialect != "kohya" else "peft"
    found = convert(tmp_path / "first", to=other, base=tiny, rank=4, output=tmp_path / "second")
    assert found.captured == pytest.approx(1, abs=1e-6)
    assert found.retained.keys() == found.layers.keys()
    assert [energy.captured for energy in found.retained.values()] == pytest.approx([1.0] * len(found.layers))
    a, b = convert(tmp_path / "first", base=tiny).delta, convert(tmp_path / "second", base=tiny).delta
    for name in a:
        assert np.abs(a[name] - b[name]).max() <= 1e-5 * np.abs(a[name]).max(), name


def test_what_lies_between_two_dialects_is_not_rounded(tiny: Base, delta: Delta, tmp_path: Path) -> None:
    convert(delta, to="peft", base=tiny, rank=4, output=tmp_path / "first")
    convert(tmp_path / "first", to="kohya", base=tiny, rank=4, output=tmp_path / "second", dtype="F16")
    between = convert(tmp_path / "first", base=tiny).delta
    convert(between, to="kohya", base=tiny, rank=4, output=tmp_path / "direct", dtype="F16")
    second, direct = load_file(tmp_path / "second"), load_file(tmp_path / "direct")
    assert all(torch.equal(second[key], direct[key]) for key in direct)


def test_captured_and_retained_are_told_apart(tiny: Base, delta: Delta, tmp_path: Path) -> None:
    convert(delta, to="peft", base=tiny, rank=4, output=tmp_path / "first")
    found = convert(tmp_path / "first", to="kohya", base=tiny, rank=1, output=tmp_path / "second")
    assert found.captured == pytest.approx(1, abs=1e-6)
    direct = convert(found.delta, to="kohya", base=tiny, rank=1)
    assert found.retained == direct.layers
    assert direct.captured < 0.9
    assert direct.retained == {}
    assert len(found.remarks) == 1
    assert document(tmp_path / "second", KEY)["retained"]["all"] == round(direct.captured, 6)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_narrower_format_rounds_once(tiny: Base, delta: Delta, dtype: Any, tmp_path: Path) -> None:
    convert(delta, to="diffusers", base=tiny, rank=2, output=tmp_path / "wide.safetensors")
    convert(delta, to="diffusers", base=tiny, rank=2, output=tmp_path / "narrow.safetensors", dtype=dtype)
    wide, narrow = load_file(tmp_path / "wide.safetensors"), load_file(tmp_path / "narrow.safetensors")
    for key, value in narrow.items():
        # Twice half a step: the wide values were rounded to float32 before.
        assert value.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
        assert torch.allclose(value.float(), wide[key], rtol=2 ** -(11 if dtype == "F16" else 8), atol=1e-7)


# --- Norms ---


@pytest.mark.parametrize("dialect", ["peft", "diffusers", "kohya"])
def test_norms_are_listed_and_fail_but_for_lycoris(tiny: Base, whole: Delta, dialect: str, tmp_path: Path) -> None:
    before = listing(tmp_path)
    norms = [name for name, parameter in whole.metadata.parameters.items() if parameter.kind == "elementwise"]
    with pytest.raises(InputError, match=rf"{len(norms)} weights cannot .* \(is a norm, .*`allow_unmatched=True`"):
        convert(whole, to=dialect, base=tiny, rank=4, output=tmp_path / "x")
    assert listing(tmp_path) == before
    found = convert(whole, to=dialect, base=tiny, rank=4, output=tmp_path / "x", allow_unmatched=True)
    assert [*found.left_out] == norms
    with safe_open(weights_file(tmp_path / "x"), "pt") as file:
        assert not [key for key in file.keys() if "norm" in key.replace("base_model", "")]  # noqa: SIM118
    assert document(weights_file(tmp_path / "x"), KEY)["lineage"]["arguments"]["left_out"] == len(norms)


# --- The bases ---


@pytest.mark.parametrize("way", ["to", "from"])
def test_bases_that_are_not_there_yet_are_computed_side_by_side(
    base: Base, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = delta_of(base, a=np.linspace(2, 1, 12), b=np.linspace(2, 1, 12))
    convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    meeting = threading.Barrier(2, timeout=60)  # broken, and an error, unless two are computed at the same time
    plain = cache_module.compute_basis

    def compute(*arguments: Any, **options: Any) -> Any:
        meeting.wait()
        return plain(*arguments, **options)

    monkeypatch.setattr(cache_module, "compute_basis", compute)
    cold, threads = BasisCache(tmp_path / "cold"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if way == "to":
            assert convert(delta, to="peft", base=base, rank=ALL, cache=cold).captured == 1
        else:
            found = convert(tmp_path / "full.safetensors", base=base, cache=cold)
            assert found.captured == pytest.approx(1, abs=1e-6)
    finally:
        torch.set_num_threads(threads)
