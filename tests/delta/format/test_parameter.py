"""The columns that describe the parameters of a file, and what breaks them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.bytes import FINGERPRINT
from support.deltas import CONV, PARAMETERS, QUERY, TEXT, fingerprint, parameter

from svdiff_delta.errors import MetadataError
from svdiff_delta.format.parameter import Parameter, dump_columns, parse_columns


@pytest.mark.parametrize(
    ("parameter", "size"),
    [
        pytest.param(parameter(3, 5), 3, id="wide: as many as rows"),
        pytest.param(parameter(5, 3), 3, id="tall: as many as columns"),
        pytest.param(parameter(320, 4, 3, 3), 36, id="a convolution: all but the first axis are columns"),
        pytest.param(parameter(4, 320, 3, 3), 4, id="a convolution to few channels"),
        pytest.param(parameter(8, 2, 3, 3, axis=1), 2, id="a transposed convolution: axis 1 is the rows"),
        pytest.param(parameter(2, 64, 1, axis=1), 2, id="axis 1, as many as columns"),
        pytest.param(parameter(7), 7, id="a norm: its own length"),
        pytest.param(replace(parameter(3, 5), kind="elementwise"), 15, id="an elementwise matrix: all its elements"),
    ],
)
def test_the_size_is_the_shorter_side_of_the_matrix(parameter: Parameter, size: int) -> None:
    assert parameter.size == size


def test_columns_are_written_as_the_spec_shows_them() -> None:
    assert dump_columns(PARAMETERS) == {
        "dtype": "F16",
        "shapes": "9x4 6x2x3x3 5 8x10",
        "fingerprints": " ".join(fingerprint(seed) for seed in (1, 2, 3, 4)),
        "exceptions": {TEXT: {"dtype": "F32"}},
        "tied": {QUERY: "0-1 3-5"},
        "null": {QUERY: 2},
    }


def test_what_is_default_everywhere_is_not_written() -> None:
    assert dump_columns({CONV: parameter(3, 5, seed=7)}) == {
        "dtype": "F16",
        "shapes": "3x5",
        "fingerprints": fingerprint(7),
    }


def test_another_axis_is_an_exception() -> None:
    assert dump_columns({CONV: parameter(8, 2, axis=1)})["exceptions"] == {CONV: {"axis": 1}}


def test_the_most_frequent_dtype_is_the_default() -> None:
    names = {"u.a": "BF16", "u.b": "F32", "u.c": "BF16"}
    columns = dump_columns({name: parameter(2, 2, dtype=dtype) for name, dtype in names.items()})
    assert (columns["dtype"], columns["exceptions"]) == ("BF16", {"u.b": {"dtype": "F32"}})


def test_a_matrix_that_is_elementwise_is_an_exception() -> None:
    parameters = {CONV: replace(parameter(3, 5), kind="elementwise")}
    columns = dump_columns(parameters)
    assert columns["exceptions"] == {CONV: {"kind": "elementwise"}}
    assert parse_columns(columns, [CONV]) == parameters


@pytest.mark.parametrize("order", [("F32", "F16", "BF16"), ("BF16", "F16", "F32"), ("F16", "BF16", "F32")])
def test_of_dtypes_as_frequent_the_widest_is_the_default(order: tuple[Any, ...]) -> None:
    columns = dump_columns({f"u.{index}": parameter(2, 2, dtype=dtype) for index, dtype in enumerate(order)})
    assert columns["dtype"] == "F32"


def test_what_is_written_is_read_back() -> None:
    assert parse_columns(dump_columns(PARAMETERS), sorted(PARAMETERS)) == PARAMETERS


def columns(**changes: Any) -> dict[str, Any]:
    """Columns of three parameters: a 4x6 matrix, a norm of 5, an 8x10 matrix; changed, or (None) left out."""
    fields = {
        "dtype": "F16",
        "fingerprints": " ".join([FINGERPRINT] * 3),
        "shapes": "4x6 5 8x10",
    } | changes
    return {key: value for key, value in fields.items() if value is not None}


NAMES = ["u.a", "u.b", "u.c"]
A_FINGERPRINT_THAT_IS = {
    "too short": "AAECAwQFBgcICQoLDA0OD",
    "too long": "AAECAwQFBgcICQoLDA0ODwA",
    "of the other alphabet": "AA/CAwQFBgcICQoLDA0ODw",
    "not in its only form": "AAECAwQFBgcICQoLDA0ODx",  # the last 4 bits are cut off
    "padded": "AAECAwQFBgcICQoLDA0ODw==",
    "not ASCII": "AAECAwQFBgcICQoLDA0ODé",
}


@pytest.mark.parametrize("text", A_FINGERPRINT_THAT_IS.values(), ids=A_FINGERPRINT_THAT_IS)
def test_what_is_not_a_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match=r"^u\.b: parameters\.fingerprints has .* which is not a fingerprint$"):
        parse_columns(columns(fingerprints=f"{FINGERPRINT} {text} {FINGERPRINT}"), NAMES)


@pytest.mark.parametrize("text", ["0x3", "-4x3", "4x", "x4", "4X3", "4.0", "04", "4x3x", "٤", "1" * 13, "1x" * 8 + "1"])
def test_what_is_not_a_shape_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match=r"^u\.b: parameters\.shapes has .* which is not a shape$"):
        parse_columns(columns(shapes=f"4x6 {text} 8x10"), NAMES)


BROKEN = {
    "no dtype": (columns(dtype=None), r"^parameters\.dtype: is missing$"),
    "an unknown dtype": (columns(dtype="F64"), r"^parameters\.dtype: must be one of F32, F16, BF16, is 'F64'$"),
    "a dtype that is a list": (columns(dtype=["F16"]), r"^parameters\.dtype: must be one of F32, F16, BF16"),
    "an exception of an unknown dtype": (columns(exceptions={"u.a": {"dtype": "F64"}}), r"^u\.a: unknown basis dtype"),
    "no shapes": (columns(shapes=None), r"^parameters\.shapes: is missing$"),
    "shapes as a list": (columns(shapes=["4x6", "5", "8x10"]), r"^parameters\.shapes: must have one entry per tensor"),
    "no text of shapes": (columns(shapes=""), r"one entry per tensor \(3\), has 0"),
    "a shape too few": (columns(shapes="4x6 5"), r"^parameters\.shapes: .* per tensor \(3\), has 2"),
    "a shape too many": (columns(shapes="4x6 5 8x10 7"), r"^parameters\.shapes: .* per tensor \(3\), has 4"),
    "two spaces": (columns(shapes="4x6  5 8x10"), r"^parameters\.shapes: .* per tensor \(3\), has 4"),
    "no fingerprints": (columns(fingerprints=None), r"^parameters\.fingerprints: is missing$"),
    "a fingerprint too few": (columns(fingerprints=FINGERPRINT), r"^parameters\.fingerprints: .* has 1"),
    "an unknown column": (columns(scales="1 1 1"), r"^parameters\.scales: unknown column$"),
    "an exception for no tensor": (columns(exceptions={"u.z": {}}), r"^parameters\.exceptions: names 'u\.z'"),
    "exceptions as a list": (columns(exceptions=[]), r"^parameters\.exceptions: must be a JSON object"),
    "an exception as a list": (columns(exceptions={"u.a": []}), r"^u\.a: parameters\.exceptions may give"),
    "an exception of another kind": (columns(exceptions={"u.a": {"rank": 1}}), r"^u\.a: parameters\.exceptions may"),
    "an unknown kind": (columns(exceptions={"u.a": {"kind": "scalar"}}), r"^u\.a: kind 'scalar' does not fit"),
    "a norm that is spectral": (columns(exceptions={"u.b": {"kind": "spectral"}}), "does not fit its shape 5 "),
    "an axis that is not there": (columns(exceptions={"u.a": {"axis": 2}}), r"^u\.a: axis 2 does not fit"),
    "a negative axis": (columns(exceptions={"u.a": {"axis": -1}}), r"^u\.a: axis -1 does not fit"),
    "an axis that is a truth value": (columns(exceptions={"u.a": {"axis": True}}), r"^u\.a: axis True does not fit"),
    "ties of no tensor": (columns(tied={"u.z": "0-1"}), r"^parameters\.tied: names 'u\.z'"),
    "ties as a list": (columns(tied={"u.a": [[0, 1]]}), r"^u\.a: parameters\.tied must be runs"),
    "ties of nothing": (columns(tied={"u.a": ""}), r"^u\.a: parameters\.tied must be runs"),
    "ties with a comma": (columns(tied={"u.a": "0-1,2-3"}), r"^u\.a: parameters\.tied must be runs"),
    "a run of one": (columns(tied={"u.a": "1-1"}), r"^u\.a: the run 1-1 in parameters\.tied is out of order or range"),
    "a run backwards": (columns(tied={"u.a": "2-1"}), r"^u\.a: the run 2-1 "),
    "runs out of order": (columns(tied={"u.c": "4-5 0-1"}), r"^u\.c: the run 0-1 "),
    "runs that share a number": (columns(tied={"u.c": "0-2 2-4"}), r"^u\.c: the run 2-4 "),
    "a run beyond the end": (columns(tied={"u.a": "2-4"}), r"^u\.a: the run 2-4 "),
    "a run that is partly null": (columns(tied={"u.a": "1-2"}, null={"u.a": 2}), r"^u\.a: the run 1-2 "),
    "nulls of no tensor": (columns(null={"u.z": 1}), r"^parameters\.null: names 'u\.z'"),
    "no nulls, but said": (columns(null={"u.a": 0}), r"^u\.a: parameters\.null must be from 1 to 4, is 0"),
    "more nulls than numbers": (columns(null={"u.a": 5}), r"^u\.a: parameters\.null must be from 1 to 4, is 5"),
    "nulls that are a truth value": (columns(null={"u.a": True}), r"^u\.a: parameters\.null must be"),
    "a norm with nulls": (columns(null={"u.b": 1}), r"^u\.b: parameters\.tied and parameters\.null are for spectral"),
    "a norm with ties": (columns(tied={"u.b": "0-1"}), r"^u\.b: parameters\.tied and parameters\.null are for spect"),
}


@pytest.mark.parametrize(("fields", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_column_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(MetadataError, match=reason):
        parse_columns(fields, NAMES)


def test_columns_for_no_tensor_are_refused() -> None:
    with pytest.raises(MetadataError, match="the file shifts nothing"):
        parse_columns(columns(), [])


def test_all_singular_values_may_be_null() -> None:
    assert parse_columns(columns(null={"u.a": 4}), NAMES)["u.a"].null == 4


def test_all_singular_values_may_be_tied() -> None:
    assert parse_columns(columns(tied={"u.a": "0-3"}), NAMES)["u.a"].tied == ((0, 3),)


def test_runs_may_be_neighbours_and_end_where_null_begins() -> None:
    found = parse_columns(columns(tied={"u.c": "0-1 2-5"}, null={"u.c": 2}), NAMES)["u.c"]
    assert (found.tied, found.null) == (((0, 1), (2, 5)), 2)
