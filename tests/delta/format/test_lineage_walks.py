"""Lineages whose inputs double at every level: whatever walks them visits each file once, and says little."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.deltas import METADATA, NORM, part, random_delta, saved

from svdiff_delta import Delta, add, load, merge, scale
from svdiff_delta.errors import InputError
from svdiff_delta.format.file import dumps, file_digest, loads
from svdiff_delta.format.lineage import Lineage, Record, Source, bounded
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.ops.lineage_tree import LARGEST, draw
from svdiff_delta.ops.replay import replay
from svdiff_delta.publish.card import make_card
from svdiff_delta.publish.license import Licence
from svdiff_delta.publish.publication import publication

SMALL = part(METADATA, NORM)
DEPTH = 60
SOON = 5.0  # seconds on any machine; 2 ** 60 steps would take centuries


def name(level: int) -> str:
    return hashlib.sha256(str(level).encode()).hexdigest()


def made(inputs: Callable[[int], tuple[str, ...]], levels: int = DEPTH) -> Metadata:
    """Metadata of a file whose inputs at each level are those of a function; the last level was trained."""
    files = {name(level): Source(name(-level), f"level {level}", None, Record("add", {}, inputs(level + 1)))
             for level in range(1, levels)}  # fmt: skip
    files[name(levels)] = Source(name(-levels), "the first", {"steps": 1})
    return replace(SMALL, lineage=Lineage(Record("add", {}, inputs(1)), files))


GRAPHS: Mapping[str, Metadata] = {
    "twice the same": made(lambda level: (name(level),) * 2),
    "ten times the same": made(lambda level: (name(level),) * 10),
    "two that share all below": made(lambda level: (name(level), name(min(level + 1, DEPTH)))),
    "all that are below": made(lambda level: tuple(map(name, range(level, DEPTH + 1)))),
    "a ring": made(lambda level: (name(level % 7 + 1), name(level % 5 + 1))),
    "itself": made(lambda level: (name(1), name(1)), 2),
    "a long chain": made(lambda level: (name(level),), 3000),
    "a wide one": made(lambda level: (name(level),) * 5_000, 3),
}


@pytest.fixture(params=GRAPHS.values(), ids=GRAPHS.keys())
def metadata(request: pytest.FixtureRequest) -> Metadata:
    return request.param  # type: ignore[no-any-return]


def in_time(work: Callable[[], object]) -> None:
    start = time.process_time()
    work()
    assert time.process_time() - start < SOON


def test_a_drawing_ends_soon_and_is_small(metadata: Metadata) -> None:
    lines: list[str] = []
    in_time(lambda: lines.extend(draw(metadata, title="dog")))
    assert sum(map(len, lines)) < LARGEST + 10_000


def test_a_file_that_was_drawn_says_so() -> None:
    lines = [*draw(GRAPHS["twice the same"], title="dog")]
    assert len(lines) == 2 + 3 * (DEPTH - 1) + 2
    assert lines[1:4] == ["└── add()", f"    ├── {name(1)[:12]}  level 1", "    │   └── add()"]
    assert lines[-1] == f"    ├── {name(1)[:12]}  level 1  shown above"
    assert sum(line.endswith("shown above") for line in lines) == DEPTH - 1
    assert sum(line.endswith("the first  trained") for line in lines) == 2


def test_what_is_too_deep_or_too_long_is_said() -> None:
    assert "left out for depth" in [*draw(GRAPHS["a long chain"], title="dog")][-1]
    last = [*draw(GRAPHS["a wide one"], title="dog")][-1]
    assert last.startswith("left out for length: ")


def test_a_long_title_and_long_arguments_are_cut() -> None:
    record = Record("add", {"note": "x" * 10**6}, (name(1),))
    lines = draw(replace(SMALL, lineage=Lineage(record, {name(1): Source(name(2), "y" * 10**6)})), title="z" * 10**6)
    assert max(map(len, lines)) < 1_100


def test_a_card_is_made_soon(metadata: Metadata) -> None:
    about = publication(random_delta(1, metadata), "me/dog")
    in_time(lambda: make_card(about, Licence("mit")))
    assert len(make_card(about, Licence("mit"))[0]) < 2**20  # of more it would not be read again


def test_such_a_file_is_written_read_and_calculated_with_soon(metadata: Metadata) -> None:
    delta = random_delta(1, metadata)
    assert metadata.lineage is not None
    given = metadata.lineage
    in_time(lambda: bounded(given))
    in_time(lambda: loads(dumps(delta)))
    in_time(lambda: file_digest(delta))
    in_time(lambda: add(delta, scale(delta, 2), delta))
    in_time(lambda: merge([delta, delta], method="linear"))


def doubled(depth: int) -> list[Delta]:
    """Deltas of which each is the sum of two times the one before."""
    deltas = [random_delta(1, SMALL)]
    for _ in range(depth):
        deltas.append(add(deltas[-1], deltas[-1], weights=(0.5, 0.5)))
    return deltas


def test_a_replay_makes_each_file_once(tmp_path: Path) -> None:
    deltas = doubled(DEPTH)
    (tmp_path / "inputs").mkdir()
    saved(deltas[0], tmp_path / "inputs" / "first.safetensors")
    last = saved(deltas[-1], tmp_path / "last.safetensors")
    outcome = replay(Path(last), tmp_path / "inputs")
    assert outcome.same
    assert len(outcome.made) == len(set(outcome.made)) == DEPTH - 1
    assert load(last).metadata == deltas[-1].metadata


def test_a_replay_of_what_is_not_there_ends_soon(metadata: Metadata, tmp_path: Path) -> None:
    path = Path(saved(random_delta(1, metadata), tmp_path / "dog.safetensors"))
    (tmp_path / "none").mkdir()

    def run() -> None:
        with pytest.raises(InputError, match=r"is not there|goes back to itself, or too far"):
            replay(path, tmp_path / "none")

    in_time(run)
