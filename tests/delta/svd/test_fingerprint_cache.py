"""The memory of fingerprints: what is remembered, for how long, and what happens when it cannot be."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file
from support.hub import Hub, fill_cache, share_blobs
from support.models import base_delta
from support.weights import normal

from svdiff_delta._util import file_state
from svdiff_delta._util.parallel import Stopped
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import BaseError, BaseMismatchError
from svdiff_delta.hub_client.blobs import is_sound, remove_blob
from svdiff_delta.svd import fingerprint_cache
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.fingerprint import fingerprint, fingerprint_stored, round_weight
from svdiff_delta.svd.fingerprint_cache import Known, flush, recall
from svdiff_delta.svd.prepare import identify_weight, prepare_weight, verify_and_prepare
from svdiff_delta.svd.verify import verify_base

NAME = "model.a.weight"

RACY = 0.05
"""Seconds after which files count as settled here: more than a granule of Linux's file systems (10 ms at most)."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("SVDIFF_HOME", str(folder))
    monkeypatch.setattr(file_state, "RACY", int(RACY * 1e9))
    monkeypatch.setattr(file_state, "TRUSTED", AnyFileSystem())  # whatever the temporary folder lies on
    forget_process()
    return folder


class AnyFileSystem:
    def __contains__(self, name: str) -> bool:
        return True


@pytest.fixture
def path(tmp_path: Path, home: Path) -> Path:
    path = tmp_path / "secret-place" / "model.safetensors"
    path.parent.mkdir()
    return written(path, normal(6, 8))


def written(path: Path, weight: torch.Tensor) -> Path:
    """Write a weight file, and wait until it has settled."""
    save_file({"a.weight": weight}, path)
    return settled(path)


def settled(path: Path) -> Path:
    """Wait until a file is old enough to be remembered."""
    while file_state.state(path.stat()).changed % file_state.MILLISECOND == 0:  # one in a million
        path.chmod(0o644)
    time.sleep(1.2 * RACY)
    return path


def forget_process() -> None:
    """Write what is new, and forget what this process holds in memory, as a new process would."""
    flush()
    fingerprint_cache._documents.clear()


def document(home: Path) -> Path:
    (found,) = (home / "fingerprints").iterdir()
    return found


class Unreadable(Base):
    """A base whose weights nobody reads."""

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def unreadable(path: Path, reference: str | None = None) -> Unreadable:
    base = open_base(reference or path)
    return Unreadable(base.path, base.components)


def test_what_was_identified_once_is_remembered_by_the_next_process(path: Path) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    forget_process()
    assert identify_weight(unreadable(path), NAME, 0) == first == Known("F16", first.fingerprint, (6, 8))


def test_what_was_chosen_is_known_where_a_file_gives_that_dtype(path: Path) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    assert identify_weight(unreadable(path), NAME, 0, "F16") == first


@pytest.mark.parametrize(("axis", "dtype"), [(1, None), (0, "F32"), (0, "BF16")])
def test_another_axis_or_dtype_is_another_fingerprint(
    path: Path, axis: int, dtype: fingerprint_cache.Dtype | None
) -> None:
    base = open_base(path)
    first = identify_weight(base, NAME, 0)
    assert recall(base, NAME, axis, dtype) is None
    assert identify_weight(base, NAME, axis, dtype).fingerprint != first.fingerprint


def test_a_warm_basis_needs_no_weight(path: Path) -> None:
    cache = BasisCache()
    cold = prepare_weight(open_base(path), NAME, "spectral", 0, cache)
    warm = prepare_weight(unreadable(path), NAME, "spectral", 0, cache)
    assert warm.parameter == cold.parameter


def test_a_delta_fits_without_a_weight_being_read(path: Path) -> None:
    base = open_base(path.parent / path.name)
    parameter = prepare_weight(base, NAME, "spectral", 0, BasisCache()).parameter
    delta = delta_for(NAME, parameter)
    assert verify_and_prepare(unreadable(path), NAME, delta, BasisCache()).parameter == parameter


def delta_for(name: str, parameter: fingerprint_cache.Any) -> fingerprint_cache.Any:
    import numpy as np

    from svdiff_delta.format.delta import Delta
    from svdiff_delta.format.metadata import BaseInfo, Metadata

    return Delta({name: np.zeros(parameter.size)}, Metadata(BaseInfo(), {name: parameter}))


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


# A wrong base is never taken for the one that was there before


def rewrite(path: Path, other: bytes) -> None:
    """Write over a file, and put its time back, as an editor may."""
    about = path.stat()
    with path.open("r+b") as stream:
        stream.write(other)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def through_a_map(path: Path, other: bytes) -> None:
    """Write through a map of the file, and put its time back."""
    about = path.stat()
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as pages:
        pages[:] = other
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def unpack(path: Path, other: bytes) -> None:
    """Unpack an archive with fixed times over the file."""
    archive, about = io.BytesIO(), tarfile.TarInfo(path.name)
    about.size, about.mtime = len(other), int(path.stat().st_mtime)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(about, io.BytesIO(other))
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        trusted = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 brought it
        tar.extractall(path.parent, **trusted)


def rename(path: Path, other: bytes) -> None:
    """Put another file with the same times in the place."""
    about, new = path.stat(), path.with_name("new")
    new.write_bytes(other)
    os.utime(new, ns=(about.st_atime_ns, about.st_mtime_ns))
    new.replace(path)


def relink(path: Path, other: bytes) -> None:
    """Make a link to another file of it."""
    about, elsewhere = path.stat(), path.parent.parent / path.name
    elsewhere.write_bytes(other)
    os.utime(elsewhere, ns=(about.st_atime_ns, about.st_mtime_ns))
    path.unlink()
    path.symlink_to(elsewhere)


def through_a_hard_link(path: Path, other: bytes) -> None:
    """Write over the file by another name that it has."""
    twin = path.with_name("twin")
    twin.hardlink_to(path)
    rewrite(twin, other)


def copy(path: Path, other: bytes) -> None:
    """Copy another file over it, with all that a copy brings along."""
    source = path.with_name("source")
    source.write_bytes(other)
    shutil.copystat(path, source)
    shutil.copy2(source, path)


WAYS: dict[str, Callable[[Path, bytes], None]] = {
    "edited": rewrite,
    "edited through a map": through_a_map,
    "edited by another name": through_a_hard_link,
    "unpacked over": unpack,
    "renamed over": rename,
    "linked to another": relink,
    "copied over": copy,
}


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


# Blobs of a Hub cache

MODEL = {"config.json": b'{"architectures": ["BertModel"]}', "model.safetensors": save({"a.weight": normal(6, 8)})}
OTHER = save({"a.weight": normal(6, 8, seed=1)})


@pytest.fixture
def blob(home: Path, cache: Path) -> Path:
    """The blob that holds the weights of owner/repo."""
    fill_cache(cache, "owner/repo", MODEL)
    return settled(blob_of(cache))


def blob_of(cache: Path) -> Path:
    (link,) = cache.glob("models--owner--repo/snapshots/*/model.safetensors")
    return link.resolve()


def test_a_blob_of_the_hub_is_known_by_its_name_wherever_it_lies(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("one", "two"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / name))
        fill_cache(tmp_path / name, "owner/repo", MODEL)
        settled(blob_of(tmp_path / name))
        base = open_base("owner/repo", fetch=False)
        assert (recall(base, NAME, 0, None) is None) == (name == "one")
        found.append(identify_weight(base, NAME, 0))
        forget_process()
    assert found[0] == found[1]


def test_a_blob_is_hashed_once_while_it_does_not_change(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = identify_weight(open_base("owner/repo", fetch=False), NAME, 0)
    forget_process()
    monkeypatch.setattr(fingerprint_cache, "is_sound", lambda *_: pytest.fail("hashed again"))
    assert identify_weight(unreadable(blob, "owner/repo"), NAME, 0) == first


def test_a_blob_of_which_nothing_is_known_is_hashed_by_whoever_learns_something_first(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: the other threads identify its weights meanwhile."""
    hashed, base = [], open_base("owner/repo", fetch=False)
    sound = fingerprint_cache.is_sound

    def counted(path: Path, name: str) -> bool:
        hashed.append(name)
        other = threading.Thread(target=lambda: identify_weight(base, NAME, 1))
        other.start()
        other.join(60)
        assert not other.is_alive()
        flush()
        assert not (fingerprint_cache.home() / "fingerprints").exists()  # written once it is known as what
        return sound(path, name)

    monkeypatch.setattr(fingerprint_cache, "is_sound", counted)
    assert recall(base, NAME, 0, None) is None
    assert hashed == []
    found = [identify_weight(base, NAME, axis) for axis in (0, 1)]
    assert hashed == [blob.name]
    forget_process()
    quiet = unreadable(blob, "owner/repo")
    assert [identify_weight(quiet, NAME, axis) for axis in (0, 1)] == found
    assert document(fingerprint_cache.home()) == fingerprint_cache._place(f"blob {blob.name}")
    assert hashed == [blob.name]


def test_whoever_is_stopped_while_he_hashes_a_blob_leaves_what_was_learnt_and_the_next_one_hashes_it(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> bool:
        raise Stopped

    base = open_base("owner/repo", fetch=False)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint_cache, "is_sound", stop)
        with pytest.raises(Stopped):
            identify_weight(base, NAME, 0)
    found = recall(base, NAME, 0, None)
    assert found is not None
    other = identify_weight(base, NAME, 1)
    forget_process()
    assert [recall(unreadable(blob, "owner/repo"), NAME, axis, None) for axis in (0, 1)] == [found, other]
    assert document(fingerprint_cache.home()) == fingerprint_cache._place(f"blob {blob.name}")


def test_a_blob_whose_times_changed_is_hashed_again_and_then_known(blob: Path) -> None:
    first = identify_weight(open_base("owner/repo", fetch=False), NAME, 0)
    forget_process()
    blob.touch()
    settled(blob)
    assert identify_weight(unreadable(blob, "owner/repo"), NAME, 0) == first


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_blob_is_refused_and_named(blob: Path, way: str) -> None:
    delta = blob_delta()
    forget_process()
    WAYS[way](blob, OTHER)
    with pytest.raises(BaseMismatchError, match="made for another base") as caught:
        verify_base(open_base("owner/repo", fetch=False), [delta])
    assert caught.value.fix.startswith(f"{blob.resolve()} is damaged") or way == "linked to another"


def blob_delta() -> fingerprint_cache.Any:
    base = open_base("owner/repo", fetch=False)
    return delta_for(NAME, prepare_weight(base, NAME, "spectral", 0, BasisCache()).parameter)


def test_a_snapshot_that_leads_to_another_blob_is_another_base(blob: Path, cache: Path) -> None:
    delta = blob_delta()
    other = blob.with_name(hashlib.sha256(OTHER).hexdigest())
    other.write_bytes(OTHER)
    shutil.copystat(blob, other)
    (link,) = cache.glob("models--owner--repo/snapshots/*/model.safetensors")
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(BaseMismatchError, match="made for another base") as caught:
        verify_base(open_base("owner/repo", fetch=False), [delta])
    assert "damaged" not in caught.value.fix


def test_a_blob_that_is_kept_once_for_several_repositories_is_known_by_its_name(blob: Path, cache: Path) -> None:
    delta, first = blob_delta(), identify_weight(open_base("owner/repo", fetch=False), NAME, 0)
    forget_process()
    share_blobs(cache)
    settled(blob)
    assert identify_weight(unreadable(blob, "owner/repo"), NAME, 0) == first
    kept = blob.resolve()
    rewrite(kept, OTHER)
    with pytest.raises(BaseMismatchError, match="made for another base") as caught:
        verify_base(open_base("owner/repo", fetch=False), [delta])
    assert caught.value.fix.startswith(f"{kept} is damaged")


@pytest.mark.parametrize("shared", [False, True])
def test_a_blob_is_removed_with_all_that_leads_to_it(blob: Path, cache: Path, shared: bool) -> None:
    if shared:
        share_blobs(cache)
    kept = blob.resolve()
    assert remove_blob(cache / "models--owner--repo", blob.name) == ["model.safetensors"]
    assert not kept.exists()
    assert [path.name for path in cache.rglob("*") if path.is_symlink() and not path.exists()] == []
    assert list(cache.rglob("model.safetensors")) == []


def test_a_blob_by_the_plain_sha1_that_a_mirror_gives_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    names = {"a9993e364706816aba3e25717850c26c9cd0d89d", "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"}
    names.add("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert all(is_sound(path, name) for name in names)
    assert not any(is_sound(path, name[::-1]) for name in names)


def test_after_a_damaged_blob_the_sound_one_is_accepted(blob: Path) -> None:
    delta, sound = blob_delta(), blob.read_bytes()
    shutil.rmtree(fingerprint_cache.home() / "fingerprints", ignore_errors=True)
    fingerprint_cache._documents.clear()
    blob.write_bytes(OTHER)  # of the same size
    settled(blob)
    wrong = identify_weight(open_base("owner/repo", fetch=False), NAME, 0)
    assert identify_weight(unreadable(blob, "owner/repo"), NAME, 0) == wrong  # of this file it is true
    forget_process()
    blob.write_bytes(sound)
    settled(blob)
    verify_base(open_base("owner/repo", fetch=False), [delta])


def test_what_earlier_versions_remembered_of_a_blob_is_not_believed(blob: Path, home: Path) -> None:
    true = identify_weight(open_base("owner/repo", fetch=False), NAME, 0)
    flush()
    kept = document(home)
    content = json.loads(kept.read_text())
    false = fingerprint(torch.ones(6, 8), 0)
    entries = {key: [fields[0], false, fields[2]] for key, fields in content["entries"].items()}
    kept.write_text(json.dumps({"entries": entries, "protocol": "1", "state": [blob.stat().st_size]}))
    fingerprint_cache._documents.clear()
    assert identify_weight(open_base("owner/repo", fetch=False), NAME, 0) == true


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
@pytest.mark.parametrize("large", [True, False], ids=["sha256", "git"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_download_of_a_base_is_refused_and_the_next_one_accepted(
    home: Path, hub: Hub, large: bool, name: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    hub.large = (".safetensors",) if large else ()
    hub.add("owner/repo", MODEL)
    where = hashlib.sha256(MODEL[name]).hexdigest() if large and name.endswith("safetensors") else name
    hub.fail(f"GET .*{where}", "flip", times=1)
    with pytest.raises(BaseError, match=f"the download of {name} is damaged: its hash is not the one that the Hub"):
        open_base("owner/repo")
    base = open_base("owner/repo")
    assert identify_weight(base, NAME, 0).fingerprint == fingerprint(round_weight(normal(6, 8), "F16"), 0)
    assert any(path.is_symlink() for path in base.path.rglob("*")) == links


def test_what_was_damaged_before_the_connection_was_lost_is_not_kept(home: Path, hub: Hub, waits: list[float]) -> None:
    more = {"model.safetensors": MODEL["model.safetensors"], "z.txt": b"text"}
    hub.add("owner/repo", MODEL | more)
    hub.fail("GET .*config.json", "flip", times=1)
    hub.fail("(GET|HEAD) .*z.txt", status=404)
    with pytest.raises(BaseError):
        open_base("owner/repo")
    hub.faults.clear()
    assert identify_weight(open_base("owner/repo"), NAME, 0).shape == (6, 8)


def test_no_local_path_stands_in_the_memory(path: Path, home: Path) -> None:
    identify_weight(open_base(path), NAME, 0)
    flush()
    text = str(document(home).relative_to(home)) + document(home).read_text()
    assert "secret" not in text
    assert str(path.stat().st_ino) in text


def test_what_two_processes_learn_is_merged(path: Path, home: Path) -> None:
    base = open_base(path)
    identify_weight(base, NAME, 0)
    forget_process()
    mine = document(home).read_text()
    document(home).unlink()
    identify_weight(base, NAME, 1)
    (place,) = (kept.path for kept in fingerprint_cache._documents.values())
    place.write_text(mine)  # another process was faster
    forget_process()
    assert recall(base, NAME, 0, None) is not None
    assert recall(base, NAME, 1, None) is not None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"entries": {"chosen 0 a.weight": ["F16"]}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_memory_is_ignored_and_written_again(path: Path, home: Path, damage: str) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    flush()
    whole = document(home).read_bytes()
    document(home).write_bytes(damage.encode("latin-1"))
    fingerprint_cache._documents.clear()
    assert identify_weight(open_base(path), NAME, 0) == first
    flush()
    assert document(home).read_bytes() == whole


@pytest.mark.parametrize("fields", [["F64", "A" * 22, [6, 8]], ["F16", "short", [6, 8]], ["F16", "A" * 22, ["6"]], 7])
def test_a_damaged_entry_is_ignored(path: Path, home: Path, fields: object) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    flush()
    content = json.loads(document(home).read_text())
    content["entries"] = dict.fromkeys(content["entries"], fields)
    document(home).write_text(json.dumps(content))
    fingerprint_cache._documents.clear()
    assert identify_weight(open_base(path), NAME, 0) == first


def test_a_home_that_cannot_be_written_is_not_needed(path: Path, home: Path) -> None:
    home.write_text("a file")
    base = open_base(path)
    first = identify_weight(base, NAME, 0)
    flush()
    assert identify_weight(unreadable(path), NAME, 0) == first  # this process still remembers
    forget_process()
    assert identify_weight(open_base(path), NAME, 0) == first


def test_a_false_memory_does_not_reach_the_basis_cache(path: Path, home: Path) -> None:
    identify_weight(open_base(path), NAME, 0)
    flush()
    content = json.loads(document(home).read_text())
    false = fingerprint(torch.ones(6, 8), 0)
    content["entries"] = {key: [fields[0], false, fields[2]] for key, fields in content["entries"].items()}
    document(home).write_text(json.dumps(content))
    fingerprint_cache._documents.clear()
    cache = BasisCache()
    prepared = prepare_weight(open_base(path), NAME, "spectral", 0, cache)
    true = fingerprint(round_weight(normal(6, 8), "F16"), 0)
    assert prepared.parameter.fingerprint == true
    assert cache.get(false) is None
    assert recall(open_base(path), NAME, 0, None) == Known("F16", true, (6, 8))


def test_a_file_that_is_exchanged_under_a_delta_is_refused(path: Path) -> None:
    delta = delta_for(NAME, prepare_weight(open_base(path), NAME, "spectral", 0, BasisCache()).parameter)
    written(path, normal(6, 8, seed=1))
    with pytest.raises(BaseMismatchError, match="made for another base"):
        verify_and_prepare(open_base(path), NAME, delta, BasisCache())


def test_a_prepared_weight_holds_no_values(path: Path) -> None:
    prepared = prepare_weight(open_base(path), NAME, "spectral", 0, BasisCache())
    assert not any(isinstance(value, torch.Tensor) for value in vars(prepared).values())
    assert prepared.weight is not prepared.weight
    assert torch.equal(prepared.weight, normal(6, 8))
    assert torch.equal(prepared.rounded, normal(6, 8).half().float())


def test_a_whole_base_is_remembered(home: Path) -> None:
    from svdiff_train.tiny import open_tiny

    delta = base_delta(open_tiny(), "unet-ca")
    forget_process()
    base = open_tiny()
    quiet = Unreadable(base.path, base.components)
    for name in delta:
        assert verify_and_prepare(quiet, name, delta, BasisCache()).parameter == delta.metadata.parameters[name]


def test_identities_are_those_of_the_values(path: Path) -> None:
    base = open_base(path)
    for dtype in ("F16", "BF16", "F32", None):
        known = identify_weight(base, NAME, 0, dtype)
        assert known[:2] == fingerprint_stored(base.read(NAME), NAME, 0, dtype)
