"""The memory of fingerprints: a file that was changed, exchanged or moved is read again."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import save, save_file
from support.remembered import (
    NAME,
    delta_for,
    forget_process,
    settled,
    unreadable,
    written,
)
from support.rewriting import WAYS
from support.weights import normal

from svdiff_delta._util import file_state
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import BaseMismatchError
from svdiff_delta.svd import fingerprint_cache
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.fingerprint import fingerprint, fingerprint_stored, round_weight
from svdiff_delta.svd.fingerprint_cache import Known, flush, recall
from svdiff_delta.svd.prepare import identify_weight, prepare_weight, verify_and_prepare


@pytest.mark.parametrize("change", ["size", "time", "inode", "content"])
def test_a_file_that_changed_is_read_again(path: Path, change: str) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    forget_process()
    about = path.stat()
    weight = normal(6, 9) if change == "size" else normal(6, 8, seed=1)
    if change == "inode":
        path.rename(path.with_suffix(".old"))  # keeps its inode, so that the new file gets another
    save_file({"a.weight": weight}, path)
    if change in ("inode", "size"):
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    else:
        os.utime(path, (time.time() - 30,) * 2)
    settled(path)
    assert identify_weight(open_base(path), NAME, 0).fingerprint != first.fingerprint


def test_a_file_that_changed_since_it_was_opened_is_not_recalled(path: Path) -> None:
    base = open_base(path)
    identify_weight(base, NAME, 0)
    os.utime(path, (time.time() - 30,) * 2)
    assert recall(base, NAME, 0, None) is None


def test_a_file_that_has_just_changed_is_not_remembered(path: Path, home: Path) -> None:
    save_file({"a.weight": normal(6, 8)}, path)
    identify_weight(open_base(path), NAME, 0)
    flush()
    assert not (home / "fingerprints").exists()


def test_a_file_that_was_young_when_it_was_read_is_not_remembered_later(path: Path, home: Path) -> None:
    save_file({"a.weight": normal(6, 8)}, path)
    base = open_base(path)
    assert recall(base, NAME, 0, None) is None
    known = Known(*fingerprint_stored(base.read(NAME), NAME, 0), (6, 8))
    settled(path)
    fingerprint_cache.remember(base, NAME, 0, None, known)  # it may have changed after it was read, in the same granule
    flush()
    assert not (home / "fingerprints").exists()


def test_a_time_in_the_future_is_not_trusted(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_state.time, "time_ns", lambda: path.stat().st_ctime_ns - 10**11)
    identify_weight(open_base(path), NAME, 0)
    flush()
    assert not (home / "fingerprints").exists()


def test_a_time_that_no_clock_has_made_is_not_trusted(path: Path) -> None:
    found = file_state.state(path.stat())
    assert file_state.tells(path, found)
    assert not file_state.tells(path, found._replace(changed=found.changed // 10**6 * 10**6))


@pytest.mark.parametrize("kind", ["tmpfs", "vfat", "exfat", "fuse.sshfs", "squashfs", "nfs4", "9p", "zfs", ""])
def test_file_systems_whose_change_time_may_be_another_are_not_trusted(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.undo()
    found = file_state.state(path.stat())
    lines = [mount("/", "ext4", found.device), mount(path.parent.as_posix().replace("-", r"\055"), kind, found.device)]
    monkeypatch.setattr(file_state, "RACY", 0)
    monkeypatch.setattr(file_state, "_mounts", lambda: lines)
    file_state.file_system.cache_clear()
    assert not file_state.tells(path, found)
    lines.pop()
    file_state.file_system.cache_clear()
    assert file_state.tells(path, found)
    file_state.file_system.cache_clear()


def mount(place: str, kind: str, device: int) -> str:
    """Return a line of the system's table of mounts."""
    return f"27 1 {os.major(device)}:{os.minor(device)} / {place} rw,relatime shared:1 - {kind} /dev/x rw"


def test_a_mount_that_another_one_hides_is_not_taken_for_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = path.stat().st_dev
    lines = [mount(path.parent.as_posix(), "ext4", device + 1), mount(path.parent.parent.as_posix(), "fuse", device)]
    monkeypatch.setattr(file_state, "_mounts", lambda: lines)
    file_state.file_system.cache_clear()
    assert file_state.file_system(path, device) == ""
    file_state.file_system.cache_clear()


@pytest.mark.parametrize("forgotten", [False, True], ids=["same process", "next process"])
@pytest.mark.parametrize("way", WAYS)
def test_another_base_in_the_same_place_with_the_same_times_is_refused(path: Path, way: str, forgotten: bool) -> None:
    os.utime(path, (1_000_000_000,) * 2)  # as reproducible archives have it
    settled(path)
    delta = delta_for(NAME, prepare_weight(open_base(path), NAME, "spectral", 0, BasisCache()).parameter)
    verify_and_prepare(unreadable(path), NAME, delta, BasisCache())  # it is remembered
    if forgotten:
        forget_process()
    before = path.stat()
    WAYS[way](path, save({"a.weight": normal(6, 8, seed=1)}))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    with pytest.raises(BaseMismatchError, match="made for another base"):
        verify_and_prepare(open_base(path), NAME, delta, BasisCache())


def test_a_link_that_is_turned_to_and_fro_leads_to_what_it_leads_to(path: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link.safetensors", written(tmp_path / "other.safetensors", normal(6, 8, seed=1))
    found = []
    for target in (path, other, path, other):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        found.append(identify_weight(open_base(link), NAME, 0).fingerprint)
    assert found == [fingerprint(round_weight(normal(6, 8, seed=seed), "F16"), 0) for seed in (0, 1, 0, 1)]


def test_a_folder_that_becomes_a_link_to_another_is_another_base(path: Path) -> None:
    folder, other = path.parent, path.parent.with_name("other")
    delta = delta_for(NAME, prepare_weight(open_base(path), NAME, "spectral", 0, BasisCache()).parameter)
    other.mkdir()
    (other / path.name).write_bytes(save({"a.weight": normal(6, 8, seed=1)}))
    shutil.copystat(path, other / path.name)
    folder.rename(folder.with_name("aside"))
    folder.symlink_to(other)
    with pytest.raises(BaseMismatchError, match="made for another base"):
        verify_and_prepare(open_base(path), NAME, delta, BasisCache())


def test_stores_through_one_map_are_all_seen(path: Path) -> None:
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as pages:
        pages[-1] = pages[-1]  # this one moves the time, and later ones do not until the page is written
        settled(path)
        found = [identify_weight(open_base(path), NAME, 0)]
        assert identify_weight(unreadable(path), NAME, 0) == found[0]
        for _ in range(2):
            pages[-1] ^= 1
            found.append(identify_weight(open_base(path), NAME, 0))
            forget_process()
            found.append(identify_weight(open_base(path), NAME, 0))
        assert found[0] != found[1] == found[2]
        assert found[0] == found[3] == found[4]


def test_another_model_is_told_even_where_the_system_says_nothing(path: Path) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    flush()
    ((place, found),) = fingerprint_cache._documents
    fingerprint_cache._documents.clear()
    path.write_bytes(save({"a.weight": normal(6, 8, seed=1)}))
    settled(path)
    (kept,) = (place / "fingerprints").iterdir()
    content = json.loads(kept.read_text())
    assert content["state"] == list(found)
    kept.write_text(json.dumps(content | {"state": list(file_state.state(path.stat()))}))  # as if nothing had moved
    assert identify_weight(open_base(path), NAME, 0) != first
