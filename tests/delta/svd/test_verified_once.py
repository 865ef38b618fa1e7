"""A base is verified once and passed on: how often its weights are read and fingerprinted, counted."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import MINILM, base_delta

from svdiff_delta import Delta, bake, convert, open_base, rebase, scale
from svdiff_delta.baking.bake import write_bake
from svdiff_delta.baking.plan import plan_bake
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseMismatchError
from svdiff_delta.svd import prepare
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.fingerprint_cache import Known

LAYER = "model.encoder.layer.0.attention.*"


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_base(MINILM), LAYER)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weight of any base is read."""
    found: Counter[str] = Counter()
    read = Base.read

    def counted(self: Base, name: str) -> prepare.Tensor:
        found[name] += 1
        return read(self, name)

    monkeypatch.setattr(Base, "read", counted)
    return found


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weight is fingerprinted; nothing is remembered, whatever this machine has on disk."""
    found: Counter[str] = Counter()
    fingerprint = prepare.fingerprint_stored

    def counted(weight: prepare.Tensor, name: str, axis: int, dtype: prepare.Dtype | None = None) -> object:
        found[name] += 1
        return fingerprint(weight, name, axis, dtype)

    monkeypatch.setattr(prepare, "fingerprint_stored", counted)
    monkeypatch.setattr(prepare, "recall", lambda *_: None)
    return found


def remember_all(delta: Delta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every fingerprint be remembered."""
    known = {name: Known(item.dtype, item.fingerprint, item.shape) for name, item in delta.metadata.parameters.items()}
    monkeypatch.setattr(prepare, "recall", lambda base, name, axis, dtype: known[name])


def shifted(delta: Delta, times: int) -> dict[str, int]:
    return dict.fromkeys(delta, times)


def test_where_nothing_is_remembered_a_bake_fingerprints_once_and_reads_to_verify_and_to_bake(
    delta: Delta, tmp_path: Path, reads: Counter[str], hashes: Counter[str]
) -> None:
    base = open_base(MINILM)
    bake(base, [delta], tmp_path / "out")
    assert hashes == shifted(delta, 1)
    assert reads == dict.fromkeys((name for name in base.names() if "position_ids" not in name), 1) | shifted(delta, 2)


def test_where_fingerprints_are_remembered_a_bake_fingerprints_nothing_and_reads_once(
    delta: Delta, tmp_path: Path, reads: Counter[str], hashes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_all(delta, monkeypatch)
    base = open_base(MINILM)
    bake(base, [delta], tmp_path / "out")
    assert not hashes
    assert reads == dict.fromkeys((name for name in base.names() if "position_ids" not in name), 1)


def test_where_bases_are_missing_too_a_bake_fingerprints_once_and_reads_once_more_to_decompose(
    delta: Delta, tmp_path: Path, reads: Counter[str], hashes: Counter[str]
) -> None:
    bake(open_base(MINILM), [delta], tmp_path / "out", cache=BasisCache(tmp_path / "empty"))
    kinds = {name: item.kind for name, item in delta.metadata.parameters.items()}
    assert {*kinds.values()} == {"spectral", "elementwise"}
    assert hashes == shifted(delta, 1)
    assert {name: reads[name] for name in delta} == {name: 2 + (kinds[name] == "spectral") for name in delta}


def test_what_is_remembered_is_fingerprinted_before_a_basis_is_computed_from_it(
    delta: Delta, tmp_path: Path, hashes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_all(delta, monkeypatch)
    bake(open_base(MINILM), [delta], tmp_path / "out", cache=BasisCache(tmp_path / "empty"))
    assert hashes == {name: 1 for name, item in delta.metadata.parameters.items() if item.kind == "spectral"}


def test_two_deltas_on_the_same_weights_cost_no_second_fingerprint(
    delta: Delta, tmp_path: Path, hashes: Counter[str]
) -> None:
    bake(open_base(MINILM), [delta, (scale(delta, 0.5), 2.0)], tmp_path / "out")
    assert hashes == shifted(delta, 1)


def to_full(delta: Delta, out: Path) -> None:
    convert(delta, to="full", base=open_base(MINILM), output=out)


def to_low_rank(delta: Delta, out: Path) -> None:
    convert(delta, to="lycoris", base=open_base(MINILM), rank=4, output=out)


def to_the_same_base(delta: Delta, out: Path) -> None:
    rebase(delta, open_base(MINILM), open_base(MINILM))


@pytest.mark.parametrize(("use", "bases"), [(to_full, 1), (to_low_rank, 1), (to_the_same_base, 2)])
def test_conversions_fingerprint_each_weight_of_each_base_once(
    delta: Delta, tmp_path: Path, hashes: Counter[str], use: Callable[[Delta, Path], None], bases: int
) -> None:
    use(delta, tmp_path / "out.safetensors")
    assert hashes == shifted(delta, bases)


def test_a_base_that_changes_after_it_was_verified_is_verified_again_and_refused(tmp_path: Path, delta: Delta) -> None:
    shutil.copytree(MINILM, tmp_path / "base")
    base = open_base(tmp_path / "base")
    plan = plan_bake(base, [delta], tmp_path / "out")
    verified = plan.check_weights()
    name = next(iter(delta))
    _, _, path, entry = base.locate(name)
    about = path.stat()
    with path.open("r+b") as stream:  # in its place, with the old times: only the change time tells
        stream.seek(base.components["model"].headers[path].data + entry.start)
        stream.write(b"\x00\x00\x80\x3f")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(BaseMismatchError, match="made for another base"):
        write_bake(plan, verified)
    assert not (tmp_path / "out").exists()
