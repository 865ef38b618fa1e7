"""How large a lineage may become, what is left out, and what is said of it (spec, section 8)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from support.deltas import METADATA, NORM, part, random_delta

from svdiff_delta import Delta, add, scale
from svdiff_delta.format.file import dumps, file_digest, loads
from svdiff_delta.format.lineage import LIMIT, Lineage, Record, Source, bounded, dump_lineage

SMALL = part(METADATA, NORM)


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def canonical(value: object) -> bytes:
    """Canonical JSON of what has only ASCII texts and whole numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def lineage(files: int, direct: int = 2, **source: object) -> Lineage:
    """A lineage of so many files, the first of which are direct inputs."""
    sources = {digest(number): Source(digest(-number), **source) for number in range(files)}  # type: ignore[arg-type]
    return Lineage(Record("add", {}, tuple(list(sources)[:direct])), sources)


def lineage_of(delta: Delta) -> Lineage:
    found = delta.metadata.lineage
    assert found is not None
    return found


def chain(length: int, **facts: object) -> Delta:
    """A delta that many operations made, each with a trained one of its own."""
    metadata = replace(SMALL, training={"notes": "x" * 500, **facts})
    result = random_delta(0, metadata)
    for number in range(length):
        result = add(result, random_delta(number, metadata, title=f"Subject {number}"))
    return result


def test_the_limit_is_that_of_the_spec() -> None:
    assert LIMIT == 65_536


def test_what_fits_stays_as_it_is() -> None:
    given = lineage(100)
    assert bounded(given) is given


def test_the_limit_itself_is_within_it() -> None:
    base = lineage(10)
    room = LIMIT - len(canonical(dump_lineage(replace(base, extra={"x": ""}))))
    fits = replace(base, extra={"x": "y" * room})
    assert len(canonical(dump_lineage(fits))) == LIMIT
    assert bounded(fits) is fits
    assert "omitted" in bounded(replace(base, extra={"x": "y" * (room + 1)})).extra


def test_beyond_it_only_direct_inputs_stay_with_digest_and_title() -> None:
    given = lineage(400, title="Dog", training={"steps": 500}, record=Record("scale", {"factor": 2}), extra={"x": 1})
    short = bounded(given)
    assert short.record == given.record
    assert short.files == {sha256: Source(given.files[sha256].digest, "Dog") for sha256 in given.record.inputs}
    assert len(canonical(dump_lineage(short))) <= LIMIT


def test_what_is_left_out_is_counted_and_digested() -> None:
    given = lineage(500, title="Dog")
    files = dump_lineage(given)["files"]
    assert bounded(given).extra["omitted"] == {"count": 500, "digest": hashlib.sha256(canonical(files)).hexdigest()}


def test_other_unknown_members_stay() -> None:
    assert bounded(replace(lineage(500), extra={"org.example.note": 1})).extra["org.example.note"] == 1


def test_where_direct_inputs_are_still_too_much_none_stays() -> None:
    given = lineage(500, direct=500)
    short = bounded(given)
    assert short.files == {}
    assert short.record == given.record
    assert len(canonical(dump_lineage(short))) <= LIMIT


def test_inputs_are_complete_however_many_there_are() -> None:
    given = lineage(2000, direct=2000)
    assert bounded(given).record.inputs == given.record.inputs


def test_an_input_that_no_file_tells_of_is_no_entry() -> None:
    given = lineage(500)
    inputs = (*given.record.inputs, digest("unknown"))
    short = bounded(replace(given, record=replace(given.record, inputs=inputs)))
    assert list(short.files) == list(given.record.inputs)


@pytest.mark.parametrize("length", [40, 120])
def test_a_chain_of_operations_does_not_outgrow_the_limit(length: int) -> None:
    made = chain(length)
    raw = dumps(made)
    document = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["svdiff"])
    assert len(canonical(document["lineage"])) <= LIMIT
    assert loads(raw).metadata == made.metadata


def test_a_result_of_what_was_left_out_goes_on_from_there() -> None:
    longest = add(*[random_delta(number, replace(SMALL, training={"notes": "x" * 900})) for number in range(80)])
    assert json.dumps(lineage_of(longest).extra["omitted"]).startswith('{"count": 80, "digest": "')
    after = lineage_of(scale(longest, 2))
    assert "omitted" not in after.extra
    assert after.files[after.record.inputs[0]].extra == lineage_of(longest).extra


def test_nested_inputs_stand_once_each_however_often_they_were_used() -> None:
    a, b = random_delta(1, SMALL, title="A"), random_delta(2, SMALL, title="B")
    both = add(a, b)
    twice = add(both, a, both, scale(both, 2), b)
    found = lineage_of(twice)
    expected = {file_digest(delta)[0] for delta in (a, b, both, scale(both, 2))}
    assert found.files.keys() == expected
    assert len(found.record.inputs) == 5
    assert found.record.inputs[0] == found.record.inputs[2]


def test_every_file_that_is_named_as_an_input_has_an_entry() -> None:
    found = lineage_of(chain(10, seed=1))
    named = {*found.record.inputs}
    for source in found.files.values():
        named |= set(source.record.inputs if source.record else ())
    assert named == found.files.keys()
    assert len(named) == 20
