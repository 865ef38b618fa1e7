"""The basis cache: entries are shared, checked, and never needed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from support.weights import normal

from svdiff_delta.basis import Basis, compute_basis
from svdiff_delta.cache import BasisCache, home
from svdiff_delta.identity import fingerprint, round_weight


@pytest.fixture
def cache(tmp_path: Path) -> BasisCache:
    return BasisCache(tmp_path / "basis")


@pytest.fixture
def rounded() -> torch.Tensor:
    return round_weight(normal(12, 30), "F16")


def same(a: Basis, b: Basis) -> bool:
    tensors = all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("sigma", "factor", "tail"))
    return tensors and (a.null, a.left) == (b.null, b.left)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (5, 5), (4, 3, 2, 2)])
def test_an_entry_is_read_back_as_it_was_written(cache: BasisCache, shape: tuple[int, ...]) -> None:
    basis = compute_basis(round_weight(normal(*shape), "F16"), 0)
    cache.put("A" * 22, basis)
    found = cache.get("A" * 22)
    assert found is not None
    assert same(found, basis)


def test_an_entry_with_tail_and_null_rows_is_read_back(cache: BasisCache) -> None:
    weight = torch.cat([normal(10, 40), 1e-4 * normal(5, 40, seed=1), torch.zeros(5, 40)])
    basis = compute_basis(round_weight(weight, "F32"), 0)
    assert basis.null == 5
    assert basis.tail.shape == (5, 40)
    cache.put("B" * 22, basis)
    found = cache.get("B" * 22)
    assert found is not None
    assert same(found, basis)


def test_what_was_never_written_is_not_there(cache: BasisCache) -> None:
    assert cache.get("C" * 22) is None


@pytest.mark.parametrize("position", [3, 40, -1])
def test_a_damaged_entry_is_reported_and_computed_again(
    cache: BasisCache, rounded: torch.Tensor, position: int
) -> None:
    key = fingerprint(rounded, 0)
    whole = cache.obtain(key, rounded, 0)
    raw = bytearray(cache.path(key).read_bytes())
    raw[position] ^= 0x55
    cache.path(key).write_bytes(raw)
    with pytest.warns(UserWarning, match="damaged cache entry"):
        again = cache.obtain(key, rounded, 0)
    assert same(again, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(key) is not None


def test_an_entry_cut_off_is_reported_and_computed_again(cache: BasisCache, rounded: torch.Tensor) -> None:
    key = fingerprint(rounded, 0)
    cache.obtain(key, rounded, 0)
    raw = cache.path(key).read_bytes()
    cache.path(key).write_bytes(raw[: len(raw) // 2])
    with pytest.warns(UserWarning, match="damaged cache entry"):
        assert cache.get(key) is None


def test_a_cache_that_cannot_be_written_is_reported_and_not_needed(tmp_path: Path, rounded: torch.Tensor) -> None:
    (tmp_path / "basis").write_text("a file stands where the folder should be")
    with pytest.warns(UserWarning, match="going on without the basis cache"):
        basis = BasisCache(tmp_path / "basis").obtain(fingerprint(rounded, 0), rounded, 0)
    assert same(basis, compute_basis(rounded, 0))


def test_the_cache_lies_where_svdiff_home_says(home_folder: Path) -> None:
    assert home() == home_folder
    assert BasisCache().root.is_relative_to(home_folder)


@pytest.fixture
def home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVDIFF_HOME", str(tmp_path))
    return tmp_path


def test_without_svdiff_home_the_platform_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SVDIFF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "svdiff-delta"
