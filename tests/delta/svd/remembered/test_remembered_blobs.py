"""The memory of fingerprints: blobs of a Hub cache are known by their names, once these are found right."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from support.hub import Hub, fill_cache, share_blobs
from support.remembered import (
    NAME,
    delta_for,
    document,
    forget_process,
    settled,
    unreadable,
)
from support.rewriting import WAYS, rewrite
from support.weights import normal

from svdiff_delta._util.parallel import Stopped
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import BaseError, BaseMismatchError
from svdiff_delta.hub_client.blobs import is_sound, remove_blob
from svdiff_delta.svd import fingerprint_cache
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.fingerprint import fingerprint, round_weight
from svdiff_delta.svd.fingerprint_cache import flush, recall
from svdiff_delta.svd.prepare import identify_weight, prepare_weight
from svdiff_delta.svd.verify import verify_base

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
