"""Broken files by the thousand (`make fuzz` reads a hundred thousand), and that the fuzzer would notice."""

from __future__ import annotations

import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import pytest
from support.bytes import container, entry
from support.mutants import MUTATIONS, mutant, originals

from svdiff_delta import Delta
from svdiff_delta.errors import HeaderError
from svdiff_delta.format.file import loads

COUNT = 3_000


def test_every_broken_file_is_refused_or_read_correctly() -> None:
    kinds, _, _ = fuzz.fuzz(COUNT, seed=7)
    assert kinds.total() == COUNT
    assert kinds.keys() == {"read", "HeaderError", "MetadataError", "TensorError", "VersionError"}
    assert min(kinds.values()) >= 10


def test_a_mutant_depends_on_its_seed_and_number_alone() -> None:
    first = [mutant(1, number) for number in range(200)]
    assert [mutant(1, number) for number in reversed(range(200))] == first[::-1]
    assert [mutant(2, number) for number in range(200)] != first
    assert {name for name, _ in first} == set(MUTATIONS)


@pytest.mark.parametrize("raw", originals())
def test_what_is_not_broken_is_read(raw: bytes) -> None:
    assert fuzz.read(raw) == "read"


def crash(raw: bytes) -> Delta:
    raise KeyError("x")


def dawdle(raw: bytes) -> Delta:
    end = time.process_time() + fuzz.SECONDS
    while time.process_time() < end:
        pass
    return loads(raw)


def hoard(raw: bytes) -> Delta:
    bytes(fuzz.TIMES * len(raw) + fuzz.ALLOWANCE)
    return loads(raw)


def warn(raw: bytes) -> Delta:
    warnings.warn("x", RuntimeWarning, stacklevel=1)
    return loads(raw)


def forget(raw: bytes) -> Delta:
    delta = loads(raw)
    name = min(delta)
    metadata = delta.metadata
    return Delta({name: delta[name]}, type(metadata)(metadata.base, {name: metadata.parameters[name]}))


def refuse(raw: bytes) -> Delta:
    raise HeaderError("")


def ramble(raw: bytes) -> Delta:
    error = HeaderError("x")
    error.message = "x\ny"
    raise error


BOMBS = {
    "sides without end": container({"w": entry(3) | {"shape": [2**53 - 1] * 40_000}}),
    "sides of thousands of digits": container(
        b'{"w":{"dtype":"U8","shape":[' + b",".join([b"9" * 4_000] * 100) + b'],"data_offsets":[0,1]}}'
    ),
    "a string that never ends": container(b'{"__metadata__":{"' + b'\\"' * 300_000),
    "strings that never end": container(b'{"__metadata__":{"a":"' + b'","' * 200_000),
    "a name of a megabyte": container({"x" * 990_000: {}}),
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_a_header_made_to_take_time_or_memory_does_not(raw: bytes) -> None:
    tracemalloc.start()
    try:
        assert fuzz.examine(raw).kind == "HeaderError"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        (crash, r"KeyError\('x'\)"),
        (dawdle, "took 1.0"),
        (hoard, "bytes for a file of"),
        (warn, "RuntimeWarning"),
        (refuse, "a refusal without a message"),
        (ramble, "a refusal that fills more than a line"),
    ],
)
def test_a_reader_that_fails_is_noticed_and_its_file_kept(
    loads: Callable[[bytes], Delta], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fuzz, "loads", loads)
    with pytest.raises(AssertionError, match=rf"^mutant \d+ of seed 0 \(\w.*\): .*{reason}"):
        fuzz.fuzz(40, seed=0, keep=tmp_path)
    assert [path.name.startswith("0-") for path in tmp_path.iterdir()] == [True]


def test_a_reader_that_loses_something_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = originals()[-1]
    outcomes: list[Any] = [loads(raw), forget(raw)]
    monkeypatch.setattr(fuzz, "loads", lambda _: outcomes.pop(0))
    with pytest.raises(AssertionError, match="other names"):
        fuzz.read(raw)
