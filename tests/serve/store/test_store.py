"""The store: what is there by name and content, what is wrong left out and said, and changes while it is served."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.deltas import random_delta as delta
from support.hub import Hub

from svdiff_delta.errors import BaseMismatchError, HubError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, save
from svdiff_delta.format.parameter import Table
from svdiff_serve.errors import UnknownDeltaError
from svdiff_serve.store.digest import LARGEST, Looker
from svdiff_serve.store.index import check_index
from svdiff_serve.store.sources import FolderSource, source_of
from svdiff_serve.store.store import Store


def write(path: Path, seed: int = 0, title: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(delta(seed).with_title(title), path, overwrite=True)
    return path


def old(path: Path) -> None:
    """Let a file look as if nobody had written to it for a while; its change time stays young."""
    os.utime(path, ns=(0, 0))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "deltas" / "dog.safetensors", 1)
    write(tmp_path / "deltas" / "pets" / "cat.safetensors", 2)
    return tmp_path / "deltas"


def opened(folder: Path, said: list[str] | None = None, index: Path | None = None) -> Store:
    store = Store([FolderSource(folder)], lambda _: None, index=index, say=(said if said is not None else []).append)
    store.refresh()
    return store


def test_deltas_are_named_by_their_paths_and_known_by_their_content(folder: Path) -> None:
    store = opened(folder)
    assert store.names() == ["dog", "pets/cat"]
    raw = (folder / "dog.safetensors").read_bytes()
    assert store.entry("dog").digest == hashlib.sha256(raw).hexdigest()
    assert dumps(store.open(store.entry("dog"))) == raw


def test_hidden_files_and_others_are_passed_over(folder: Path) -> None:
    shutil.copy(folder / "dog.safetensors", folder / ".half.safetensors")
    (folder / "notes.txt").write_text("x")
    assert opened(folder).names() == ["dog", "pets/cat"]


def test_a_name_that_is_not_there_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownDeltaError, match="'dog'"):
        opened(folder).entry("dug")


def test_a_damaged_file_is_left_out_and_said_and_the_rest_serves(folder: Path, said: list[str]) -> None:
    raw = (folder / "dog.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(raw[: len(raw) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    store = opened(folder, said)
    assert store.names() == ["dog", "pets/cat"]
    assert set(store.faults()) == {"half", "empty"}
    assert {line.split(":")[0] for line in said} == {"half", "empty"}
    with pytest.raises(UnknownDeltaError, match="cannot be used"):
        store.entry("half")


def with_nan(raw: bytes) -> bytes:
    """Return a file whose last value is not a number."""
    return raw[:-4] + np.float32(np.nan).tobytes()


def test_values_that_are_not_finite_are_refused_on_entry(folder: Path, said: list[str]) -> None:
    raw = (folder / "dog.safetensors").read_bytes()
    (folder / "bad.safetensors").write_bytes(with_nan(raw))
    store = opened(folder, said)
    assert "NaN" in store.faults()["bad"]


def test_a_delta_of_another_base_is_left_out_with_the_reason(folder: Path, said: list[str]) -> None:
    def judge(found: Delta) -> None:
        raise BaseMismatchError("unet.conv_in.weight: another base")

    store = Store([FolderSource(folder)], judge, say=said.append)
    store.refresh()
    assert store.names() == []
    with pytest.raises(UnknownDeltaError, match="another base"):
        store.entry("dog")


def test_deltas_of_one_table_are_judged_once(folder: Path) -> None:
    judged: list[Delta] = []
    store = Store([FolderSource(folder)], judged.append)
    store.refresh()
    write(folder / "bird.safetensors", 3)
    store.refresh()
    assert (len(judged), store.names()) == (1, ["bird", "dog", "pets/cat"])


def test_a_file_that_is_replaced_while_it_is_judged_condemns_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store([FolderSource(folder)], lambda _: None)
    own = Looker.look

    def look(self: Looker, path: str) -> object:
        found = own(self, path)
        if path.endswith("dog.safetensors"):
            write(folder / "dog.safetensors", 9)
        return found

    monkeypatch.setattr(Looker, "look", look)
    monkeypatch.setattr("svdiff_serve.store.store.RACY", 0)
    store.refresh()
    assert store.names() == ["pets/cat"]
    monkeypatch.setattr(Looker, "look", own)
    store.refresh()
    assert store.names() == ["dog", "pets/cat"]


def test_a_file_that_could_not_be_read_is_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdiff_serve.store.store.RACY", 0)

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("svdiff_serve.store.digest.os.open", refuse)
        store = opened(folder)
    assert store.names() == []
    store.refresh()
    assert store.names() == ["dog", "pets/cat"]


def test_too_little_memory_for_one_is_not_said_of_others(folder: Path) -> None:
    tries: list[Delta] = []

    def judge(found: Delta) -> None:
        tries.append(found)
        if len(tries) == 1:
            raise MemoryError

    store = Store([FolderSource(folder)], judge)
    store.refresh()
    assert (store.names(), "memory" in store.faults()["dog"]) == (["pets/cat"], True)


def test_reasons_that_clients_are_told_name_no_folder_of_this_machine(folder: Path) -> None:
    with (folder / "big.safetensors").open("wb") as stream:
        stream.truncate(LARGEST + 1)
    store = opened(folder)
    entry = store.entry("dog")
    (folder / "dog.safetensors").unlink()
    for ask in (lambda: store.entry("big"), lambda: store.open(entry)):
        with pytest.raises(UnknownDeltaError, match="cannot be used") as caught:
            ask()
        assert str(folder) not in str(caught.value)


def test_what_is_new_changed_or_gone_is_seen(folder: Path) -> None:
    store = opened(folder)
    before = store.entry("dog")
    write(folder / "bird.safetensors", 3)
    write(folder / "dog.safetensors", 9)
    (folder / "pets" / "cat.safetensors").unlink()
    assert store.refresh()
    assert store.names() == ["bird", "dog"]
    assert store.entry("dog").digest != before.digest


def test_a_file_that_is_replaced_with_the_same_times_and_size_is_seen(folder: Path) -> None:
    path = folder / "dog.safetensors"
    old(path)
    store = opened(folder)
    before = store.entry("dog").digest
    path.write_bytes(dumps(delta(5)))
    old(path)
    store.refresh()
    assert store.entry("dog").digest != before


def test_a_file_that_was_replaced_and_not_looked_at_yet_is_not_opened_as_the_former_one(folder: Path) -> None:
    store = opened(folder)
    entry = store.entry("dog")
    write(folder / "dog.safetensors", 9)
    with pytest.raises(UnknownDeltaError, match="was changed"):
        store.open(entry)
    store.refresh()
    assert dumps(store.open(store.entry("dog"))) == dumps(delta(9))


def test_a_file_that_went_is_refused_in_a_line(folder: Path) -> None:
    store = opened(folder)
    entry = store.entry("dog")
    (folder / "dog.safetensors").unlink()
    with pytest.raises(UnknownDeltaError, match="No such file"):
        store.open(entry)


def test_of_two_deltas_of_one_name_the_first_counts_and_it_is_said(tmp_path: Path, said: list[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one / "dog.safetensors", 1)
    write(two / "dog.safetensors", 2)
    store = Store([FolderSource(one), FolderSource(two)], lambda _: None, say=said.append)
    store.refresh()
    assert store.entry("dog").path == str(one / "dog.safetensors")
    assert "there is another delta 'dog'" in said[0]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        source_of(str(tmp_path / "none"))


# -- the index


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    looks: list[str] = []
    own = Looker.look

    def look(self: Looker, path: str) -> object:
        looks.append(path)
        return own(self, path)

    monkeypatch.setattr(Looker, "look", look)
    return looks


def test_an_index_spares_the_looks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index.sqlite"
    monkeypatch.setattr("svdiff_serve.store.store.RACY", 0)
    opened(folder, index=index).close()
    looks = count_looks(monkeypatch)
    again = opened(folder, index=index)
    assert (looks, again.names()) == ([], ["dog", "pets/cat"])


def test_a_damaged_index_is_made_anew_and_said(folder: Path, tmp_path: Path, said: list[str]) -> None:
    index = tmp_path / "index.sqlite"
    opened(folder, said, index).close()
    with index.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"no database " * 300)
    assert opened(folder, said, index).names() == ["dog", "pets/cat"]
    assert "made anew" in said[0]
    with sqlite3.connect(index) as found:
        assert found.execute("SELECT count(*) FROM files").fetchone() == (2,)


@pytest.mark.parametrize("kind", ["delta", "database"])
def test_a_file_that_is_no_index_is_left_as_it_is(folder: Path, tmp_path: Path, said: list[str], kind: str) -> None:
    other = tmp_path / "other"
    if kind == "delta":
        write(other, 3)
    else:
        with closing(sqlite3.connect(other)) as made, made:
            made.execute("CREATE TABLE mine (precious TEXT)")
    before = other.read_bytes()
    store = opened(folder, said, other)
    store.close()
    assert (other.read_bytes() == before, store.names()) == (True, ["dog", "pets/cat"])
    assert "is another file" in said[0]
    with pytest.raises(InputError, match="is another file"):
        check_index(other)


def test_a_full_disk_costs_the_index_and_nothing_else(folder: Path, tmp_path: Path, said: list[str]) -> None:
    for number in range(60):  # more than the pages hold that the empty index has
        shutil.copy(folder / "dog.safetensors", folder / f"twin{number}.safetensors")
    store = Store([FolderSource(folder)], lambda _: None, index=tmp_path / "index.sqlite", say=said.append)
    store._index._connection.execute("PRAGMA max_page_count = 1")  # SQLite takes what it has already
    store.refresh()
    assert len(store.names()) == 62
    assert any("full" in line and "kept in memory" in line for line in said)
    write(folder / "bird.safetensors", 3)
    store.refresh()
    assert "bird" in store.names()


# -- looks


def test_a_file_of_a_known_kind_is_found_to_be_what_a_full_reading_finds(tmp_path: Path) -> None:
    plain = {name: shift for name, shift in delta(1).items() if not delta(1).metadata.parameters[name].tied}
    kept = {name: delta(1).metadata.parameters[name] for name in plain}
    about = replace(delta(1).metadata, parameters=Table(kept))
    looker = Looker()
    for number in range(3):
        save(Delta({name: shift * number for name, shift in plain.items()}, about), tmp_path / f"{number}")
    found = [looker.look(str(tmp_path / str(number))) for number in range(3)]
    assert len(looker._kinds) == 1
    fresh = [Looker().look(str(tmp_path / str(number))) for number in range(3)]
    assert found == fresh
    bad = with_nan((tmp_path / "1").read_bytes())
    (tmp_path / "bad").write_bytes(bad)
    assert "NaN" in looker.look(str(tmp_path / "bad")).fault


def test_a_folder_called_like_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be read"):
        Looker().look(str(tmp_path))


# -- the watch, and the Hub


def test_a_watched_store_takes_in_what_comes_and_goes_on_after_an_error(
    folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(folder, said)
    own, failed = Store.refresh, []

    def refresh(self: Store) -> bool:
        if not failed:
            failed.append(1)
            raise MemoryError
        return own(self)

    monkeypatch.setattr(Store, "refresh", refresh)
    store.watch(0.01)
    write(folder / "bird.safetensors", 3)
    end = time.monotonic() + 10
    while "bird" not in store.names() and time.monotonic() < end:
        time.sleep(0.01)
    store.close()
    assert "bird" in store.names()
    assert any("MemoryError" in line for line in said)


def test_a_delta_on_the_hub_is_served_and_stays_when_the_hub_goes(hub: Hub, said: list[str]) -> None:
    hub.add("alice/dog", {"svdiff.safetensors": dumps(delta(1))})
    source = source_of("alice/dog")
    store = Store([source], lambda _: None, say=said.append)
    store.refresh()
    assert store.names() == ["alice/dog"]
    hub.add("alice/dog", {"svdiff.safetensors": dumps(delta(2))})
    source._asked = float("-inf")  # type: ignore[attr-defined]
    before = store.entry("alice/dog").digest
    store.refresh()
    assert store.entry("alice/dog").digest != before


def test_a_repository_that_is_not_there_is_said(hub: Hub, said: list[str]) -> None:
    store = Store([source_of("alice/none")], lambda _: None, say=said.append)
    store.refresh()
    assert store.names() == []
    assert any("alice/none" in line for line in said)


def test_a_reference_that_names_nothing_is_refused() -> None:
    with pytest.raises(HubError):
        source_of("hf://")
