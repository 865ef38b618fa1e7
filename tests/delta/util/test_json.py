"""Strict reading of JSON, and canonical writing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laws import law

from svdiff_delta._util.json import MAX_DEPTH, as_object, canonical_json, strict_json, take
from svdiff_delta.errors import HeaderError, MetadataError

leaves = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()

REFUSED = {
    "nothing": (b"", "not valid JSON"),
    "half a document": (b'{"a":', "not valid JSON"),
    "two documents": (b"{}{}", "not valid JSON"),
    "a comment": (b"{} // so", "not valid JSON"),
    "a trailing comma": (b"[1,]", "not valid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "a line break in a string": (b'["a\nb"]', "not valid JSON"),
    "Latin-1": (b'["\xe9"]', r"not UTF-8 \(byte 2\)"),
    "a surrogate in UTF-8": (b'["\xed\xa0\x80"]', "not UTF-8"),
    "half of a surrogate pair": (rb'["\ud83d"]', "half of a surrogate pair"),
    "half of a surrogate pair in a key": (rb'{"\ude00":1}', "half of a surrogate pair"),
    "a key twice": (b'{"a":1,"b":2,"a":3}', "key 'a' stands twice"),
    "a key twice, written differently": (rb'{"a":1,"\u0061":1}', "key 'a' stands twice"),
    "a key twice, deep inside": (b'[{"b":{"a":1,"a":1}}]', "key 'a' stands twice"),
    "NaN": (b"[NaN]", "NaN is not JSON"),
    "infinity": (b"[-Infinity]", "-Infinity is not JSON"),
    "a number beyond double": (b"[1e999]", "1e999 is too large"),
    "an integer beyond 2^53": (b"[9007199254740993]", "9007199254740993 is larger than 2\\^53"),
    "a negative integer beyond 2^53": (b"[-9007199254740993]", "is larger than 2\\^53"),
    "an integer of a million digits": (b"[" + b"7" * 10**6 + b"]", "is larger than 2\\^53"),
    "thirteen levels": (b"[" * 13 + b"]" * 13, "nested too deeply"),
    "thirteen levels of objects": (b'{"a":' * 12 + b'{"a":1}' + b"}" * 12, "nested too deeply"),
    "a million levels": (b"[" * 10**6, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_strict_json_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(HeaderError, match=f"^the header .*{reason}"):
        strict_json(text, "the header", HeaderError)


def test_an_error_is_of_the_kind_that_was_asked_for() -> None:
    with pytest.raises(MetadataError, match=r"^`svdiff` is not valid JSON"):
        strict_json(b"?", "`svdiff`", MetadataError)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, id="twelve levels, empty"),
        pytest.param(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH, id="twelve levels, with a number"),
        pytest.param(b"[9007199254740991,-9007199254740991]", id="2^53 - 1"),
        pytest.param('["δ", "\\ud83d\\ude00", "\U0001f600"]'.encode(), id="a whole surrogate pair"),
        pytest.param(b' {"a" : [1, 2.5, true, false, null, "x"]}\n', id="spaces"),
    ],
)
def test_what_is_strict_json_is_read(text: bytes) -> None:
    assert strict_json(text, "it", HeaderError) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        pytest.param(b"7", int, id="an integer"),
        pytest.param(b"-9007199254740991", int, id="the least integer"),
        pytest.param(b"9007199254740991", int, id="the largest integer"),
        pytest.param(b"9007199254740992", float, id="2^53, a double"),
        pytest.param(b"100000000000000000000", float, id="1e20, a double"),
        pytest.param(b"7.0", float, id="a fraction"),
    ],
)
def test_integers_end_below_2_to_the_53(text: bytes, kind: type) -> None:
    assert type(strict_json(text, "it", HeaderError)) is kind


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param({"b": 1, "a": 2}, b'{"a":2,"b":1}', id="sorted keys, no spaces"),
        pytest.param({"é": 1, "z": 2, "Z": 3}, '{"Z":3,"z":2,"é":1}'.encode(), id="no escapes, sorted by code unit"),
        pytest.param({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'.encode(), id="sorted by UTF-16"),
        pytest.param('"\\\n\x01', rb'"\"\\\n\u0001"', id="short escapes"),
        pytest.param([1.0, 0.1, 1e-7, 1e21, 1e20, -0.0], b"[1,0.1,1e-7,1e+21,100000000000000000000,0]", id="numbers"),
        pytest.param([True, None], b"[true,null]", id="words"),
    ],
)
def test_written_json_is_rfc_8785(value: object, expected: bytes) -> None:
    assert canonical_json(value) == expected


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**53, {1: 2}, object(), "\ud800", {"\ud800": 1}],
    ids=["NaN", "infinity", "2^53", "a key that is a number", "an object", "half a pair", "a key that is half a pair"],
)
def test_what_json_has_no_place_for_is_refused(value: object) -> None:
    with pytest.raises(MetadataError, match=r"^the metadata cannot be written as JSON"):
        canonical_json(value)


def test_what_is_nested_too_deeply_to_be_read_again_is_not_written() -> None:
    value: list[object] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert strict_json(canonical_json(value), "it", HeaderError) == value
    with pytest.raises(MetadataError, match=r"^the metadata is nested too deeply"):
        canonical_json([value])


@law
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_is_written_is_read_back_as_it_was(number: float) -> None:
    assert strict_json(canonical_json([number]), "it", HeaderError) == [number]


@law
@given(st.floats(min_value=2.0**53, max_value=1e21))
def test_doubles_that_are_written_as_long_integers_are_read_back_as_they_were(number: float) -> None:
    assert strict_json(canonical_json([number, -number]), "it", HeaderError) == [number, -number]


@law
@given(st.dictionaries(st.text(), leaves | st.lists(leaves) | st.dictionaries(st.text(), leaves)))
def test_writing_what_was_read_changes_nothing(value: dict[str, object]) -> None:
    once = strict_json(canonical_json(value), "it", HeaderError)
    assert once == value
    assert canonical_json(once) == canonical_json(value)


def test_an_object_is_returned_as_it_is() -> None:
    assert as_object({"a": 1}, "base") == {"a": 1}


def test_what_should_be_an_object_and_is_not_is_named() -> None:
    with pytest.raises(MetadataError, match=r"^base: must be a JSON object$"):
        as_object([], "base")


def test_taking_a_member_removes_it() -> None:
    fields = {"a": 1, "b": 2}
    assert take(fields, "a") == 1
    assert fields == {"b": 2}


def test_a_missing_member_is_named() -> None:
    with pytest.raises(MetadataError, match=r"^base\.components: is missing$"):
        take({}, "components", "base.")
