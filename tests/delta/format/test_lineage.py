"""The record of operations and inputs, to and from JSON."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from svdiff_delta.errors import MetadataError
from svdiff_delta.format.lineage import Lineage, Record, Source, dump_lineage, parse_lineage

DOG, CAT, BOTH = "d" * 64, "c" * 64, "b" * 64
LINEAGE = Lineage(
    Record("scale", {"factor": 0.5}, (BOTH,)),
    {
        DOG: Source("1" * 64, "Dog", {"steps": 500}),
        CAT: Source("2" * 64),
        BOTH: Source("3" * 64, record=Record("add", {"weights": [1, 2]}, (DOG, CAT))),
    },
)
JSON = {
    "operation": "scale",
    "arguments": {"factor": 0.5},
    "inputs": [BOTH],
    "files": {
        DOG: {"digest": "1" * 64, "title": "Dog", "training": {"steps": 500}},
        CAT: {"digest": "2" * 64},
        BOTH: {"digest": "3" * 64, "operation": "add", "arguments": {"weights": [1, 2]}, "inputs": [DOG, CAT]},
    },
}


def test_a_lineage_is_written_as_the_spec_shows_it() -> None:
    assert dump_lineage(LINEAGE) == JSON


def test_a_lineage_is_read_as_it_was_written() -> None:
    assert parse_lineage(dump_lineage(LINEAGE)) == LINEAGE


def test_arguments_inputs_and_files_may_be_missing() -> None:
    assert parse_lineage({"operation": "convert"}) == Lineage(Record("convert"))


def test_unknown_members_are_kept_and_passed_on() -> None:
    fields = JSON | {"added later": 1, "files": {DOG: {"digest": "1" * 64, "added later": 2}}}
    lineage = parse_lineage(deepcopy(fields))
    assert lineage.extra == {"added later": 1}
    assert lineage.files[DOG].extra == {"added later": 2}
    assert dump_lineage(lineage) == fields


def source(**fields: Any) -> dict[str, Any]:
    return {"operation": "add", "files": {DOG: {"digest": "1" * 64} | fields}}


DIGESTS = "SHA-256 digests have 64 hexadecimal digits$"
BROKEN = {
    "no operation": ({}, r"^lineage\.operation: is missing$"),
    "an operation without a name": ({"operation": ""}, r"^lineage\.operation: must be a non-empty string$"),
    "an operation that is a number": ({"operation": 1}, r"^lineage\.operation: must be a non-empty string$"),
    "arguments as a list": ({"operation": "add", "arguments": []}, r"^lineage\.arguments: must be a JSON object$"),
    "inputs as a text": ({"operation": "add", "inputs": DOG}, r"^lineage\.inputs: must be SHA-256 digests"),
    "an input that is no digest": ({"operation": "add", "inputs": ["dog"]}, r"^lineage\.inputs: must be SHA-256"),
    "an input in capitals": ({"operation": "add", "inputs": ["D" * 64]}, r"^lineage\.inputs: must be SHA-256"),
    "an input that is a number": ({"operation": "add", "inputs": [1]}, r"^lineage\.inputs: must be SHA-256"),
    "files as a list": ({"operation": "add", "files": []}, r"^lineage\.files: must be a JSON object$"),
    "a file as a list": ({"operation": "add", "files": {DOG: []}}, rf"^lineage\.files\.{DOG}: must be a JSON object$"),
    "a file under no digest": (
        {"operation": "add", "files": {"dog": {"digest": DOG}}},
        rf"^lineage\.files\.dog: {DIGESTS}",
    ),
    "a file without a digest": ({"operation": "add", "files": {DOG: {}}}, DIGESTS),
    "a digest that is a number": (source(digest=1), DIGESTS),
    "a digest that is too short": (source(digest="1" * 63), DIGESTS),
    "a title that is a number": (source(title=1), r"\.title: must be a string$"),
    "training facts as a list": (source(training=[]), r"\.training: must be a JSON object$"),
    "a nameless operation of a file": (source(operation=""), r"\.operation: must be a non-empty string$"),
    "broken inputs of a file": (source(operation="add", inputs=["x"]), r"\.inputs: must be SHA-256 digests"),
}


@pytest.mark.parametrize(("fields", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_lineage_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(MetadataError, match=reason):
        parse_lineage(fields)
