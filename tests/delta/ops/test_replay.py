"""Doing again what a lineage says: from files found by hash, and from files made again (spec, section 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.deltas import METADATA, NORM, QUERY, part, random_delta, saved

from svdiff_delta import Delta, add, interpolate, load, merge, quantize, save, scale, select, truncate
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format.file import dumps, file_digest
from svdiff_delta.format.lineage import Lineage, Record, Source
from svdiff_delta.ops.replay import perform, replay
from svdiff_delta.ops.weights import Weight
from svdiff_delta.selectors.addresses import Layout

UNET = replace(METADATA, base=replace(METADATA.base, attentions=Layout((0,), 1, (0,))), training={"steps": 500})
Pair = tuple[Delta, Delta]

OPERATIONS: dict[str, Callable[[Delta, Delta], Delta]] = {
    "add": lambda a, b: add(a, b, a, weights=[0.3, -2, 1e-9]),
    "add to F16": lambda a, b: add(a, b, dtype="F16"),
    "add with weights by selector, in order": lambda a, b: add(
        a, b, weights=[Weight(0.1, {"unet": 2.0, "mid": 3.0, "!unet": 0.5}), {"text": -1.5}]
    ),
    "add with weights by address": lambda a, b: add(a, b, weights=[{"(8,down,0)": 5}, 1], sample_size=8),
    "interpolate": lambda a, b: interpolate(a, b, 0.3, dtype="BF16"),
    "scale": lambda a, b: scale(a, -1 / 3, dtype="I8"),
    "slice": lambda a, b: select(a, "unet", "!*.norm.weight"),
    "slice by address": lambda a, b: select(a, "(64,down,0)", sample_size=64),
    "truncate by rank": lambda a, b: truncate(a, rank=2),
    "truncate by energy": lambda a, b: truncate(a, energy=0.7),
    "quantize": lambda a, b: quantize(a, "I8", max_error=0.005),
    "linear": lambda a, b: merge([a, b], weights=[2, {"unet-1d": 3}]),
    "ties": lambda a, b: merge([a, b], method="ties", density=0.4, dtype="F16"),
    "dare_ties": lambda a, b: merge([a, b], method="dare_ties", density=0.4, seed=7),
    "slerp": lambda a, b: merge([a, b], method="slerp", alpha=0.2),
    "a chain": lambda a, b: scale(add(select(a, "mid"), truncate(b, rank=1)), 2),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the inputs lie under other names, one of them deeper."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    saved(random_delta(1, UNET, title="Dog"), tmp_path / "in" / "first.safetensors")
    saved(random_delta(2, UNET, title="Cat"), tmp_path / "in" / "deep" / "second.safetensors")
    (tmp_path / "in" / "other.safetensors").write_bytes(b"no delta")
    return tmp_path


def inputs(folder: Path) -> Pair:
    return load(folder / "in" / "first.safetensors"), load(folder / "in" / "deep" / "second.safetensors")


@pytest.mark.parametrize("title", [None, "Both"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_operation_gives_the_same_bytes_again(
    folder: Path, operation: Callable[[Delta, Delta], Delta], title: str | None
) -> None:
    path = folder / "out.safetensors"
    result = operation(*inputs(folder))
    save(result.with_title(title) if title else result, path)
    outcome = replay(path, folder / "in")
    assert (outcome.same, outcome.difference) == (True, "")
    assert set(outcome.found.values()) <= {*(folder / "in").rglob("*")}


def test_files_between_are_made_again_once_and_reported(folder: Path) -> None:
    a, b = inputs(folder)
    half = scale(a, 0.5).with_title("Half")
    save(add(half, b, half), folder / "out.safetensors")
    outcome = replay(folder / "out.safetensors", folder / "in")
    assert outcome.same
    assert outcome.made == (file_digest(half)[0],)
    assert sorted(outcome.found) == sorted([file_digest(a)[0], file_digest(b)[0]])


def test_a_file_between_that_is_there_is_not_made_again(folder: Path) -> None:
    half = scale(inputs(folder)[0], 0.5)
    save(half, folder / "in" / "half.safetensors")
    save(scale(half, 2), folder / "out.safetensors")
    outcome = replay(folder / "out.safetensors", folder / "in")
    assert (outcome.same, outcome.made) == (True, ())
    assert list(outcome.found.values()) == [folder / "in" / "half.safetensors"]


def test_a_file_whose_values_are_not_what_it_says_is_found_out(folder: Path) -> None:
    a, b = inputs(folder)
    true, other = add(a, b), add(a, b, weights=[1, 1.0001])
    save(Delta.from_stored(other.stored, true.metadata), folder / "out.safetensors")
    outcome = replay(folder / "out.safetensors", folder / "in")
    assert not outcome.same
    assert outcome.difference.endswith(": its values differ")


def test_a_file_that_says_more_than_it_should_is_found_out(folder: Path) -> None:
    true = add(*inputs(folder))
    save(Delta.from_stored(true.stored, replace(true.metadata, extra={"x": 1})), folder / "out.safetensors")
    outcome = replay(folder / "out.safetensors", folder / "in")
    assert not outcome.same
    assert outcome.difference.startswith("the values are equal; what the file says")


def test_other_number_formats_and_parameters_are_named(folder: Path) -> None:
    a, _ = inputs(folder)
    true = scale(a, 2)
    half = scale(a, 2, dtype="F16")
    save(Delta.from_stored(half.stored, true.metadata), folder / "half.safetensors")
    assert "is F16 in the file, F32 made again" in replay(folder / "half.safetensors", folder / "in").difference
    fewer = select(true, "unet")
    metadata = replace(true.metadata, parameters=fewer.metadata.parameters)
    save(Delta.from_stored(fewer.stored, metadata), folder / "fewer.safetensors")
    assert "is in only one of them" in replay(folder / "fewer.safetensors", folder / "in").difference


def forged(folder: Path, record: Record, files: dict[str, Source] | None = None) -> Path:
    metadata = replace(METADATA, lineage=Lineage(record, files or {}))
    return saved(random_delta(3, metadata), folder / "out.safetensors")


HASH = "ab" * 32
TRAINED = Source("c" * 64, "Bird")
BAD: dict[str, tuple[Record, dict[str, Source], str]] = {
    "an input that is nowhere": (Record("scale", {"factor": 2}, (HASH,)), {}, f"its input {HASH} is not there: put"),
    "a titled input that is nowhere": (
        Record("scale", {"factor": 2}, (HASH,)),
        {HASH: TRAINED},
        rf"its input {HASH} \('Bird'\) is not there",
    ),
    "an input that goes back to itself": (
        Record("scale", {"factor": 2}, (HASH,)),
        {HASH: replace(TRAINED, record=Record("scale", {"factor": 2}, (HASH,)))},
        "goes back to itself",
    ),
    "an unknown operation": (Record("conjure"), {}, "'conjure': is not an operation that can be repeated: known are"),
    "no inputs": (Record("add", {"weights": []}), {}, "there is nothing to add"),
}


@pytest.mark.parametrize(("record", "files", "reason"), BAD.values(), ids=BAD)
def test_a_lineage_that_cannot_be_followed_is_refused(
    folder: Path, record: Record, files: dict[str, Source], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        replay(forged(folder, record, files), folder / "in")


def test_an_input_that_comes_out_different_is_refused(folder: Path) -> None:
    source, _ = inputs(folder)
    record = Record("scale", {"factor": 2}, (file_digest(source)[0],))
    path = forged(folder, Record("scale", {"factor": 2}, (HASH,)), {HASH: replace(TRAINED, record=record)})
    with pytest.raises(InputError, match="was made again from its own inputs, and came out different: put that file"):
        replay(path, folder / "in")


def test_a_lineage_that_is_longer_than_any_is_refused(folder: Path) -> None:
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    files = {name: replace(TRAINED, record=Record("scale", {"factor": 2}, (after,))) for name, after in pairwise(names)}
    with pytest.raises(InputError, match="too far"):
        replay(forged(folder, Record("scale", {"factor": 2}, (names[0],)), files), folder / "in")


def test_a_trained_file_has_nothing_to_replay(folder: Path) -> None:
    path = folder / "in" / "first.safetensors"
    with pytest.raises(InputError, match=f"^{path}: has no lineage: there is nothing to replay"):
        replay(path, folder / "in")


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such folder$"):
        replay(forged(folder, Record("add")), folder / "nowhere")


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("add", {"weights": 1}),
        ("add", {"weights": ["1"]}),
        ("add", {"weights": [True]}),
        ("add", {"weights": [{"default": 1}]}),
        ("add", {"weights": [{"default": 1, "where": {"unet": 1}}]}),
        ("add", {"weights": [1], "dtype": "F8"}),
        ("add", {"weights": [1], "path": "x"}),
        ("interpolate", {"alpha": 0.5}),
        ("scale", {}),
        ("scale", {"factor": "x"}),
        ("slice", {"selectors": 1}),
        ("slice", {"selectors": ["unet"], "sample_size": "64"}),
        ("truncate", {"rank": "1"}),
        ("quantize", {"dtype": "I4", "max_error": 1}),
        ("merge", {"method": 1}),
        ("merge", {"method": "ties", "density": "x"}),
    ],
)
def test_arguments_that_no_operation_records_are_refused(operation: str, arguments: dict[str, object]) -> None:
    with pytest.raises(DeltaError):
        perform(Record(operation, arguments, (HASH,)), [random_delta(1)])


@pytest.mark.parametrize("operation", ["scale", "slice", "truncate", "quantize"])
def test_an_operation_of_one_input_takes_no_two(operation: str) -> None:
    given = {"scale": {"factor": 1}, "slice": {"selectors": ["unet"]}, "truncate": {"rank": 1}, "quantize": {}}
    with pytest.raises(InputError, match="it takes one input, 2 are recorded"):
        perform(Record(operation, given[operation]), [random_delta(1), random_delta(2)])


def test_what_is_replayed_need_not_have_all_parameters(folder: Path) -> None:
    a = random_delta(5, part(UNET, NORM, QUERY))
    saved(a, folder / "in" / "part.safetensors")
    save(add(a, inputs(folder)[1]), folder / "out.safetensors")
    assert replay(folder / "out.safetensors", folder / "in").same
    assert dumps(load(folder / "out.safetensors")) == (folder / "out.safetensors").read_bytes()
