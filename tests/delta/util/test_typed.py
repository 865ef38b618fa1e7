"""The typed reader: what is wrong is named by its key, with what was found and what is allowed."""

from __future__ import annotations

import sys
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
from support.commands import python

from svdiff_delta._text.printable import shown
from svdiff_delta._util.json import check_nodes
from svdiff_delta._util.json_files import read_lines, read_object
from svdiff_delta._util.limits import CAPTION_LINES, CONFIGURATION, LINE, Limit
from svdiff_delta._util.typed import build, given, keys_of
from svdiff_delta.errors import BaseError, InputError


class Part(msgspec.Struct, forbid_unknown_fields=True):
    NOUN: ClassVar[str] = "a part"

    name: str
    share: float | msgspec.UnsetType = msgspec.UNSET


class Whole(msgspec.Struct, kw_only=True):
    parts: Annotated[list[Part], msgspec.Meta(min_length=1)] = []
    shares: dict[str, float] = {}
    flag: bool = False
    count: int = 0
    way: Literal["up", "down"] = "up"
    size: int | list[int] | None = None
    text: Annotated[str, msgspec.Meta(min_length=1)] = "x"


WRONG: dict[str, tuple[Any, str]] = {
    "no mapping": ([], "must be a mapping: its keys are parts, shares, flag, count, way, size, text"),
    "a text for a flag": ({"flag": "x"}, "flag: must be true or false, is 'x'"),
    "a number for a flag": ({"flag": 1}, "flag: must be true or false, is 1"),
    "a flag for a number": ({"count": True}, "count: must be a whole number, is True"),
    "a fraction for a count": ({"count": 1.5}, "count: must be a whole number, is 1.5"),
    "a whole fraction for a count": ({"count": 1.0}, "count: must be a whole number, is 1.0"),
    "a text for a number": ({"parts": [{"name": "a", "share": "1"}]}, "parts[0].share: must be a number, is '1'"),
    "NaN": ({"shares": {"a": 1.0, "b": float("nan")}}, "shares.b: must be a finite number, is nan"),
    "infinity within": ({"parts": [{"name": "a"}, {"share": float("-inf")}]}, "parts[1].share: must be a finite"),
    "a huge number": ({"shares": {"a": 10**400}}, "shares.a: the number is too large"),
    "a huge count": ({"count": "9" * 500}, f"count: must be a whole number, is {'9' * 80!r}…"),
    "another choice": ({"way": "left"}, "way: must be one of down, up, is 'left'"),
    "a choice of another type": ({"way": 1}, "way: must be one of down, up, is 1"),
    "one of several types": ({"size": [1, "x"]}, "size[1]: must be a whole number, is 'x'"),
    "none of several types": ({"size": {}}, "size: must be a whole number or a list of whole numbers, is an empty map"),
    "an empty text": ({"text": ""}, "text: must be a text, is ''"),
    "an empty list": ({"parts": []}, "parts: must be a list of mappings, is an empty list"),
    "an unknown key": ({"parts": [{"name": "a", "nam": 1}]}, "parts[0]: a part has the unknown key 'nam': known are"),
    "a missing key": ({"parts": [{}]}, "parts[0]: a part has no name: give name (a text)"),
    "no mapping within": ({"parts": ["a"]}, "parts[0]: a part must be a mapping: its keys are name, share"),
    "a key that is a number": ({"shares": {1: 1.0}}, "shares: the key 1 must be a text: write it in quotes"),
}


@pytest.mark.parametrize(("value", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(value: Any, reason: str) -> None:
    with pytest.raises(BaseError) as found:
        build(Whole, value, "file", BaseError)
    assert str(found.value).startswith(f"file: {reason}")


def test_what_is_right_is_built() -> None:
    built = build(Whole, {"parts": [{"name": "a", "share": 1}], "size": [2], "count": 3, "flag": True, "other": 1})
    assert (built.parts[0].share, built.size, built.count, built.flag) == (1.0, [2], 3, True)
    assert given(build(Part, {"name": "a"})) == {"name": "a"}
    assert keys_of(Part) == ("name", "share")


class Bounded(msgspec.Struct):
    rank: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    weight: Annotated[float, msgspec.Meta(le=2)] = 1.0
    steps: Annotated[int, msgspec.Meta(ge=1)] = 1
    title: Annotated[str, msgspec.Meta(max_length=3)] = ""
    seeds: Annotated[tuple[int, ...], msgspec.Meta(max_length=2)] = ()
    part: tuple[str, Annotated[float, msgspec.Meta(ge=0)]] = ("x", 0.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"rank": 0}, "rank: must be a whole number from 1 to 4,096, is 0"),
        ({"weight": 2.5}, "weight: must be a number of at most 2, is 2.5"),
        ({"steps": -1}, "steps: must be a whole number of at least 1, is -1"),
        ({"title": "four"}, "title: must be a text of at most 3 characters, is 'four'"),
        ({"seeds": [1, 2, 3]}, "seeds: has 3 items, 2 is the most"),
        ({"part": ["x", -1.0]}, "part[1]: must be a number of at least 0, is -1.0"),
    ],
)
def test_what_is_too_small_or_too_large_is_named_with_its_bounds(value: Any, reason: str) -> None:
    with pytest.raises(InputError) as found:
        build(Bounded, value)
    assert str(found.value) == reason


def test_what_an_error_quotes_is_short_whatever_it_is() -> None:
    values: list[Any] = ["x" * 10**6, ["x"] * 10**5, {"a": {}}, 10**5000, -(10**5000), b"x" * 10**5, object(), 1.5]
    assert all(len(shown(value)) < 200 for value in values)


def test_nodes_are_counted_without_what_stands_in_strings() -> None:
    limit = Limit(10**6, 5, 8)
    check_nodes(b'{"a": "[,,,,,,:::{{"}', "it", limit, InputError)
    check_nodes(b'["\\",,,,,,,,,,", 1]', "it", limit, InputError)
    with pytest.raises(InputError, match="it: has more than 5 values"):
        check_nodes(b"[1,2,3,4,5,6]", "it", limit, InputError)


def test_a_configuration_of_too_many_values_or_levels_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "config.json"
    for text, reason in {
        "[" + "0," * CONFIGURATION.nodes + "0]": "has more than 500,000 values",
        '{"a":' * 33 + "1" + "}" * 33: "is nested too deeply",
        '{"a":' * 100_000: "is nested too deeply",
        "[]": "is not a JSON object",
        "{": "is not valid JSON",
        '{"a": ' + "9" * 5_000 + "}": "is not valid JSON",
    }.items():
        path.write_text(text)
        with pytest.raises(BaseError, match=rf"config\.json: {reason}"):
            read_object(path, CONFIGURATION, BaseError)


def test_a_line_that_is_too_long_or_holds_too_much_is_named(tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    for text, reason in {
        '{"a": "' + "x" * LINE + '"}': "line 2 has more than 1,048,576 bytes",
        "[" + "0," * CAPTION_LINES.nodes + "0]": "line 2: has more than 10,000 values",
    }.items():
        path.write_text(f"{{}}\n{text}\n")
        with pytest.raises(InputError, match=rf"a\.jsonl: {reason}"):
            list(read_lines(path, CAPTION_LINES, "x"))


def test_the_arithmetic_starts_without_it() -> None:
    found = python("import svdiff_delta, sys; print('msgspec' in sys.modules)")
    assert (found.code, found.out) == (0, "False\n")
    assert "msgspec" in sys.modules
