"""The basis cache: entries are shared, checked, and never needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support.commands import python
from support.weights import normal

from svdiff_delta._util.file_state import state
from svdiff_delta._util.home import home
from svdiff_delta.errors import InputError, OutputError
from svdiff_delta.format.container import header_bytes, read_header
from svdiff_delta.svd import cache_entry
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import Basis, compute_basis, matricize
from svdiff_delta.svd.fingerprint import fingerprint, round_weight


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


def test_a_two_sided_entry_has_both_factors_and_gives_the_same_change(tmp_path: Path) -> None:
    rounded = round_weight(normal(12, 30), "F16")
    key, shift = fingerprint(rounded, 0), torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
    one = BasisCache(tmp_path / "one").obtain(key, rounded, 0)
    both = BasisCache(tmp_path / "both", two_sided=True).obtain(key, rounded, 0)
    assert one.tail.shape == (0, 30)
    assert both.tail.shape == (12, 30)
    U, sigma, Vt = torch.linalg.svd(rounded.double(), full_matrices=False)
    truth = U * shift @ Vt
    for basis in (one, both):
        torch.testing.assert_close(basis.sigma, sigma, rtol=1e-13, atol=0)
        found = basis.delta_weight(matricize(rounded, 0), shift).double()
        assert (found - truth).norm() <= 2e-6 * truth.norm()


def test_a_two_sided_cache_completes_one_sided_entries_and_leaves_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = round_weight(normal(12, 30), "F16")
    key = fingerprint(rounded, 0)
    BasisCache(tmp_path).obtain(key, rounded, 0)
    assert BasisCache(tmp_path, two_sided=True).obtain(key, rounded, 0).tail.shape == (12, 30)
    monkeypatch.setattr("svdiff_delta.svd.cache.compute_basis", lambda *_, **__: pytest.fail("computed again"))
    assert BasisCache(tmp_path, two_sided=True).obtain(key, rounded, 0).tail.shape == (12, 30)
    assert BasisCache(tmp_path).obtain(key, rounded, 0).tail.shape == (12, 30)


@pytest.fixture
def three(cache: BasisCache) -> list[Path]:
    """Three entries of one size, the first not used for longest."""
    paths = []
    for index, letter in enumerate("ABC"):
        cache.put(letter * 22, compute_basis(normal(6, 9).float(), 0))
        paths.append(cache.path(letter * 22))
        os.utime(paths[-1], (0, 1_000_000 + index))
    return paths


def test_entries_are_listed_with_the_longest_unused_first(cache: BasisCache, three: list[Path]) -> None:
    assert [cache_entry.path for cache_entry in cache.entries()] == three
    assert [cache_entry.used for cache_entry in cache.entries()] == [1_000_000, 1_000_001, 1_000_002]


def test_using_an_entry_makes_it_the_last_to_go(cache: BasisCache, three: list[Path]) -> None:
    cache.get("A" * 22)
    assert [cache_entry.path for cache_entry in cache.entries()] == [three[1], three[2], three[0]]


def test_pruning_removes_the_longest_unused_until_the_rest_fits(cache: BasisCache, three: list[Path]) -> None:
    size = three[0].stat().st_size
    assert cache.prune(3 * size) == []
    assert [cache_entry.path for cache_entry in cache.prune(3 * size - 1, dry_run=True)] == three[:1]
    assert [cache_entry.path for cache_entry in cache.prune(size)] == three[:2]
    assert [path.exists() for path in three] == [False, False, True]


def test_pruning_removes_what_killed_processes_left_and_nothing_that_is_being_written(
    cache: BasisCache, three: list[Path]
) -> None:
    old, new = three[0].with_name(".x.safetensors.old"), three[0].with_name(".x.safetensors.new")
    lock = three[0].with_suffix(".lock")
    for path in (old, new, lock):
        path.touch()
    os.utime(old, (0, time.time() - 100_000))
    os.utime(lock, (0, time.time() - 100_000))
    cache.prune(10**9)
    assert [path.exists() for path in (old, lock, new, *three)] == [False, False, True, True, True, True]


def test_an_entry_that_may_not_be_removed_is_named(cache: BasisCache, three: list[Path]) -> None:
    three[0].unlink()
    three[0].mkdir()
    os.utime(three[0], (0, 0))
    with pytest.raises(OutputError, match=f"{three[0].name}: could not be removed"):
        cache.prune(0)


def test_damaged_entries_are_named_with_the_reason(cache: BasisCache, three: list[Path]) -> None:
    raw = bytearray(three[1].read_bytes())
    raw[-1] ^= 1
    three[1].write_bytes(raw)
    three[2].write_bytes(b"")
    assert sorted(cache.damaged()) == sorted([(three[1], "its checksum does not fit"), (three[2], "it is empty")])


def test_an_entry_whose_tensors_do_not_fit_each_other_is_damaged(cache: BasisCache) -> None:
    whole = compute_basis(normal(6, 9).float(), 0)
    cache.put("A" * 22, Basis(whole.sigma[:5], whole.factor, whole.tail, 0, left=True))
    assert [reason for _, reason in cache.damaged()] == ["its tensors do not fit each other"]


# Entries are bound to their fingerprint


def kept(cache: BasisCache, weight: torch.Tensor) -> str:
    """Keep a weight's basis, both factors whole; return its fingerprint."""
    rounded = round_weight(weight, "F16")
    key = fingerprint(rounded, 0)
    cache.put(key, compute_basis(rounded, 0, two_sided=True))
    return key


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of an entry, and leave its data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def refused(cache: BasisCache, key: str, why: str) -> None:
    """An entry is found damaged by whoever wants it, and by `damaged`."""
    with pytest.warns(UserWarning, match=f"damaged cache entry, computing it again .*{re.escape(why)}"):
        assert cache.get(key) is None
    (reason,) = (reason for path, reason in cache.damaged() if path == cache.path(key))
    assert why in reason


@pytest.mark.parametrize("way", ["swapped", "copied", "linked"])
def test_an_entry_under_the_name_of_another_weight_is_damaged(cache: BasisCache, way: str) -> None:
    one, other = kept(cache, normal(6, 9)), kept(cache, normal(6, 9, seed=1))
    place, source = cache.path(one), cache.path(other)
    if way == "swapped":
        aside = place.with_name("aside")
        place.rename(aside)
        source.rename(place)
        aside.rename(source)
        refused(cache, other, f"it is the basis of another weight (fingerprint {place.stem}, not {source.stem})")
    elif way == "copied":
        shutil.copyfile(source, place)
    else:
        place.unlink()
        place.symlink_to(source)
    with pytest.warns(UserWarning, match="damaged cache entry"):
        assert same(cache.obtain(one, round_weight(normal(6, 9), "F16"), 0), reference(cache, normal(6, 9)))
    cache.get(one)  # is right now, without a warning


def reference(cache: BasisCache, weight: torch.Tensor) -> Basis:
    return compute_basis(round_weight(weight, "F16"), 0, two_sided=cache.two_sided)


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "side": lambda header: header["__metadata__"].update(side="right"),
    "null": lambda header: header["__metadata__"].update(null="1"),
    "checksum": lambda header: header["__metadata__"].update(crc32="00000000"),
    "no checksum": lambda header: header["__metadata__"].pop("crc32"),
    "fingerprint": lambda header: header["__metadata__"].update(fingerprint="0" * 32),
    "no fingerprint": lambda header: header["__metadata__"].pop("fingerprint"),
    "another field": lambda header: header["__metadata__"].update(more="1"),
    "digest": lambda header: header["__metadata__"].update(digest="0" * 64),
    "tail width": lambda header: header["tail"].update(shape=[4, 9]),
    "order of tensors": lambda header: header.update(factor=header["tail"], tail=header["factor"]),
    "number format": lambda header: header["tail"].update(dtype="I32"),
}


@pytest.mark.parametrize("field", HEADERS)
def test_an_entry_whose_header_was_changed_is_damaged(cache: BasisCache, field: str) -> None:
    key = kept(cache, normal(6, 6))  # square, so that tensors fit each other in many ways
    change_header(cache.path(key), HEADERS[field])
    refused(cache, key, "its digest does not fit")


def test_an_entry_of_many_dimensions_is_damaged_though_its_digest_fits(cache: BasisCache) -> None:
    key = kept(cache, normal(6, 6))
    raw = cache.path(key).read_bytes()
    header = read_header(raw, len(raw))
    layout = [(name, item.dtype, (*item.shape, *[1] * 70)) for name, item in header.entries.items()]
    fields = {name: value for name, value in header.metadata.items() if name != "digest"}
    digest = hashlib.sha256(header_bytes(layout, fields)).hexdigest()
    cache.path(key).write_bytes(header_bytes(layout, fields | {"digest": digest}) + raw[header.data :])
    refused(cache, key, "it has no sigma in F64")


def test_an_entry_that_is_edited_while_it_is_in_use_is_found(cache: BasisCache) -> None:
    key = kept(cache, normal(6, 6))
    path, about = cache.path(key), cache.path(key).stat()
    assert cache.get(key) is not None
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    time.sleep(0.02)  # more than a granule of change times
    path.write_bytes(raw)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    refused(cache, key, "its checksum does not fit")


def test_an_entry_is_summed_once_and_its_use_noted_once_an_hour(
    cache: BasisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = kept(cache, normal(6, 6))
    os.utime(cache.path(key), (0, 1_000_000))
    cache.get(key)
    noted = state(cache.path(key).stat())
    assert time.time_ns() - noted.modified < 60e9
    monkeypatch.setattr(cache_entry.zlib, "crc32", lambda *_: pytest.fail("summed again"))
    assert cache.get(key) is not None
    assert state(cache.path(key).stat()) == noted


def test_no_mutant_of_an_entry_raises_anything_else(cache: BasisCache) -> None:
    key = kept(cache, normal(6, 6))
    path, whole = cache.path(key), cache.path(key).read_bytes()
    basis, random = compute_basis(round_weight(normal(6, 6), "F16"), 0, two_sided=True), Random(1)
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            raw[random.randrange(len(raw) if random.random() < 0.3 else 600)] = random.randrange(256)
        path.write_bytes(raw[: random.randrange(len(raw))] if random.random() < 0.2 else raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cache.get(key)
        assert found is None or same(found, basis)


def test_a_header_in_other_words_is_the_same_header(cache: BasisCache) -> None:
    key = kept(cache, normal(6, 9))
    change_header(cache.path(key), lambda header: header.update(tail=header.pop("tail")))
    assert cache.get(key) is not None
    assert cache.damaged() == []


@pytest.mark.parametrize("name", ["notes.safetensors", "ab" * 15 + ".safetensors", "AB" * 16 + ".safetensors"])
def test_an_entry_that_lies_where_nobody_looks_is_named(cache: BasisCache, name: str) -> None:
    path = cache.path(kept(cache, normal(6, 9)))
    path.rename(path.with_name(name))
    assert cache.damaged() == [(path.with_name(name), "its name is not the one of a fingerprint's entry")]


def older(cache: BasisCache, weight: torch.Tensor) -> str:
    """Keep a basis as versions did that wrote no fingerprint into the entry."""
    key = kept(cache, weight)
    change_header(cache.path(key), lambda header: [header["__metadata__"].pop(k) for k in ("fingerprint", "digest")])
    return key


def test_entries_of_an_earlier_version_are_computed_again_which_is_said_once(cache: BasisCache) -> None:
    weights = [normal(6, 9), normal(6, 9, seed=1)]
    keys = [older(cache, weight) for weight in weights]
    assert {reason for _, reason in cache.damaged()} == {"an earlier version made it, without its fingerprint"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for key, weight in zip(keys, weights, strict=True):
            assert same(cache.obtain(key, round_weight(weight, "F16"), 0), reference(cache, weight))
    assert [str(warning.message) for warning in said] == [
        f"{cache.root}: entries that an earlier version made, without their fingerprints, are computed again"
    ]
    assert cache.damaged() == []


def test_a_cache_that_was_never_used_has_no_entries(cache: BasisCache) -> None:
    assert (cache.entries(), cache.damaged(), cache.prune(0)) == ([], [], [])


@pytest.mark.parametrize("device", ["cuda:99", "nowhere", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_at_once(tmp_path: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"{device}: there is no such device here"):
        BasisCache(tmp_path, device=device)


FULL = """
import resource, signal, sys, warnings
from pathlib import Path
import torch
from svdiff_delta.svd.cache import BasisCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
warnings.simplefilter("default")
rounded = torch.arange(900).reshape(30, 30).float()
print(BasisCache(Path(sys.argv[1])).obtain("A" * 22, rounded, 0).sigma.numel())
"""


def test_a_disk_that_is_full_is_reported_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = python(FULL, tmp_path)
    assert done.out == "30\n"
    assert "DeltaWarning: going on without the basis cache: " in done.err
    assert "could not be written (File too large)" in done.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
