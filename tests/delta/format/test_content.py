"""A delta that was loaded is what it was, whatever becomes of its file; and it goes to other processes."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.deltas import METADATA, NORM, QUERY, random_delta

from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format import content, file
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, file_digest, save
from svdiff_delta.io import load
from svdiff_delta.ops.arithmetic import scale
from svdiff_delta.ops.select import select


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(random_delta(1, title="Dog", dtypes={NORM: "F16", QUERY: "I8"}), tmp_path / "dog.safetensors")
    return tmp_path / "dog.safetensors"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be too large for memory."""
    monkeypatch.setattr(content, "IN_MEMORY", 64)
    monkeypatch.setattr(file, "IN_MEMORY", 64)


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def overwrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-8, 2)
        stream.write(bytes(8))


def overwrite_quietly(path: Path) -> None:
    about = path.stat()
    overwrite(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def replace(path: Path) -> None:
    save(random_delta(2, dtypes={NORM: "F16", QUERY: "I8"}), path, overwrite=True)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "overwritten": overwrite,
    "overwritten, its time put back": overwrite_quietly,
    "replaced": replace,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_loaded_delta_outlives_its_file(path: Path, damage: str) -> None:
    content = path.read_bytes()
    delta = load(path)
    DAMAGES[damage](path)
    assert dumps(delta) == content


@pytest.mark.parametrize("use", [dumps, file_digest, lambda delta: delta[QUERY], pickle.dumps])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_large_delta_whose_file_was_changed_says_so(
    large: None, path: Path, damage: str, use: Callable[[Delta], object]
) -> None:
    delta = load(path)
    DAMAGES[damage](path)
    with pytest.raises(DeltaError, match=r"dog\.safetensors: (was changed since it was opened: load it|could not be)"):
        use(delta)


def test_a_large_delta_all_in_one_piece_whose_file_was_changed_says_so(large: None, tmp_path: Path) -> None:
    save(random_delta(1), tmp_path / "dog.safetensors")
    delta = load(tmp_path / "dog.safetensors")
    assert delta.flat() is not None
    truncate(tmp_path / "dog.safetensors")
    with pytest.raises(InputError, match="load it again"):
        delta.flat()


def test_a_large_delta_is_read_and_identified_as_a_small_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, raw = load(path), path.read_bytes()
    monkeypatch.setattr(content, "IN_MEMORY", 64)
    monkeypatch.setattr(file, "IN_MEMORY", 64)
    assert load(path) == small
    assert dumps(load(path)) == raw
    assert file_digest(load(path)) == file_digest(small)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("limit", [64, 1 << 20])
def test_no_descriptor_is_held(path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(content, "IN_MEMORY", limit)
    before = descriptors()
    held = [load(path) for _ in range(8)]
    assert descriptors() == before
    assert len(held[0][QUERY])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is a device or a pipe, not a file"):
        load(tmp_path / "pipe")


MADE: dict[str, Callable[[Path], Delta]] = {
    "given values": lambda path: random_delta(1, dtypes={NORM: "BF16"}),
    "a file": load,
    "a file under another title": lambda path: load(path).with_title("Cat"),
    "a part of a file": lambda path: select(load(path), "1d"),
    "a sum": lambda path: scale(load(path), 0.5),
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle of the first protocol": lambda value: pickle.loads(pickle.dumps(value, 0)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("limit", [64, 1 << 20])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("made", MADE)
def test_a_copy_is_equal_and_as_immutable(
    path: Path, monkeypatch: pytest.MonkeyPatch, made: str, way: str, limit: int
) -> None:
    monkeypatch.setattr(content, "IN_MEMORY", limit)
    delta = MADE[made](path)
    twin = COPIES[way](delta)
    assert twin == delta
    assert dumps(twin) == dumps(delta)
    assert file_digest(twin) == file_digest(delta)
    for name in delta:
        assert np.array_equal(twin[name], delta[name])
        with pytest.raises(ValueError, match="read-only"):
            twin[name][0] = 1
        assert memoryview(twin.stored[name].data).readonly


def test_deltas_that_differ_are_not_equal(path: Path) -> None:
    delta = load(path)
    assert delta != delta.with_title("Cat")
    assert delta != random_delta(1, title="Dog")
    assert delta != random_delta(2, title="Dog", dtypes={NORM: "F16", QUERY: "I8"})
    assert delta != {}


@pytest.mark.parametrize("way", COPIES)
def test_what_goes_with_a_delta_is_copied_too(path: Path, way: str) -> None:
    metadata = load(path).metadata
    twin = COPIES[way](metadata)
    assert twin == metadata
    assert (twin.numbers, twin.title) == (metadata.numbers, "Dog")
    with pytest.raises(AttributeError):
        twin.base = None
    parameter = COPIES[way](METADATA.parameters[QUERY])
    assert parameter == METADATA.parameters[QUERY]
    with pytest.raises(AttributeError):
        parameter.null = 3


def norm_of(delta: Delta) -> float:
    return float(sum(np.square(values, dtype=np.float64).sum() for values in delta.values()))


def test_a_process_pool_takes_loaded_deltas(path: Path) -> None:
    deltas = [load(path), load(path).with_title("Cat")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(norm_of, deltas)) == [norm_of(delta) for delta in deltas]
