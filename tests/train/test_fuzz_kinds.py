"""Broken files of every kind by the hundred (`make fuzz` reads ten thousand of each), and that a failure is noticed."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.broken import adapters, bases, texts
from support.broken_kinds import CARD, TARGETS, entries, pictures
from support.measured import MEMORY, Files, Target, fuzz_target, outcome_of

from svdiff_delta.errors import InputError

EXPECTED = {
    "adapter": {"read", "HeaderError", "InputError", "TensorError", "MetadataError", "BaseMismatchError"},
    "text": {"read", "InputError"},
    "base": {"read", "BaseError"},
    "picture": {"read", "InputError"},
    "entry": {"read", "CacheError"},
    "card": {"read", "InputError"},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What transformers and huggingface_hub log on odd values is not of interest."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_broken_file_is_refused_in_one_line_or_read(kind: str) -> None:
    target = TARGETS[kind]
    found = fuzz_target(kind, target, range(target.short), seed=7)
    assert found.total() == target.short
    assert EXPECTED[kind] <= found.keys()


ORIGINALS: dict[str, tuple[str, Callable[[], dict[str, Files]]]] = {
    "adapter": ("adapter", adapters),
    "text": ("text", texts),
    "base": ("base", bases),
    "card": ("card", lambda: {"card": {"README.md": CARD}}),
    "picture": ("picture", lambda: {str(n): {"a.png": raw} for n, raw in enumerate(pictures())}),
    "entry": ("entry", lambda: {str(n): {f"{'A' * 22}.entry": raw} for n, raw in enumerate(entries())}),
}


@pytest.mark.parametrize(("kind", "originals"), ORIGINALS.values(), ids=ORIGINALS)
def test_what_is_not_broken_is_read(tmp_path: Path, kind: str, originals: Callable[[], dict[str, Files]]) -> None:
    found = {
        label: outcome_of(TARGETS[kind], tmp_path / label.replace(" ", "-"), files)
        for label, files in originals().items()
    }
    assert {label for label, outcome in found.items() if outcome != "read"} <= {"flux", "kohya"}  # of other models


def crash(_: Path) -> None:
    raise KeyError("x")


def dawdle(_: Path) -> None:
    end = time.process_time() + 2.05
    while time.process_time() < end:
        pass


def hoard(_: Path) -> None:
    bytes(bytearray(b"x") * (MEMORY + 20_000_000))


def ramble(_: Path) -> None:
    error = InputError("x")
    error.message = ""
    raise error


@pytest.mark.parametrize(
    ("read", "reason"),
    [(crash, r"KeyError\('x'\)"), (dawdle, "took 2.0"), (hoard, "bytes for 1"), (ramble, "without a message")],
)
def test_a_reader_that_fails_is_noticed_and_its_files_kept(
    tmp_path: Path, read: Callable[[Path], object], reason: str
) -> None:
    target = Target(1, 1, lambda _: ("same", {"a/b": b"x"}), read)
    with pytest.raises(AssertionError, match=rf"^it 3 of seed 0 \(same\): .*{reason}"):
        fuzz_target("it", target, range(3, 4), 0, tmp_path)
    assert (tmp_path / "it-0-3" / "a" / "b").read_bytes() == b"x"


@pytest.mark.parametrize("kind", TARGETS)
def test_a_case_depends_on_its_seed_and_number_alone(kind: str) -> None:
    make = TARGETS[kind].make
    first = [make(random.Random(f"{number}")) for number in range(20)]
    assert [make(random.Random(f"{number}")) for number in reversed(range(20))] == first[::-1]
