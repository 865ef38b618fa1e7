"""Names of weights that are slices of a stacked tensor, and the feature that files with them need."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svdiff_delta.errors import MetadataError, VersionError
from svdiff_delta.format import metadata as meta
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.format.stacked import Slice, slice_of
from svdiff_delta.ops.arithmetic import add, scale
from svdiff_delta.ops.quantize import quantize
from svdiff_delta.ops.select import select
from svdiff_delta.ops.truncate import truncate

EXPERT = Parameter((2, 3), "spectral", 1, "F16", "A" * 22)
NAMES = ("model.experts.up[0]", "model.experts.up[10]", "model.q.weight")


def moe(*names: str) -> Delta:
    base = BaseInfo({"model": "MoE"})
    return Delta({name: np.array([1.0, -2.0]) for name in names}, Metadata(base, dict.fromkeys(names, EXPERT)))


def needs(delta: Delta) -> object:
    return json.loads(meta.dump(delta.metadata)["svdiff"]).get("must_understand")


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("a.up[0]", Slice("a.up", 0)),
        ("a.up[120]", Slice("a.up", 120)),
        ("a[b][1]", Slice("a[b]", 1)),
        ("a[1].weight", None),
        ("a.up[]", None),
        ("a.up[-1]", None),
        ("a.up[01]", None),
        ("a.up[1", None),
        ("a.up[" + "1" * 5000 + "]", None),
    ],
)
def test_an_index_is_read_from_the_end_of_a_name(key: str, found: Slice | None) -> None:
    assert slice_of(key) == found
    assert found is None or str(found) == key


def test_a_file_with_experts_names_the_feature_and_one_without_does_not() -> None:
    assert needs(moe(*NAMES)) == ["stacked"]
    assert needs(moe(NAMES[2])) is None
    assert loads(dumps(moe(*NAMES))) == moe(*NAMES)


def test_a_reader_that_does_not_know_the_feature_refuses_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    written = dumps(moe(*NAMES))
    monkeypatch.setattr(meta, "FEATURES", frozenset())
    with pytest.raises(VersionError, match=r"^must_understand: the file needs stacked, which this program"):
        loads(written)


def test_operations_treat_experts_as_any_weight() -> None:
    delta = moe(*NAMES)
    for result in (add(delta, delta), scale(delta, 0.5), truncate(delta, rank=1), quantize(delta, "F16")):
        assert needs(result) == ["stacked"]
        assert list(result) == list(NAMES)
    assert add(delta, delta)[NAMES[1]].tolist() == [2, -4]


def test_a_slice_without_experts_needs_the_feature_no_more() -> None:
    delta = moe(*NAMES)
    assert needs(select(delta, "model.q.weight")) is None
    assert list(select(delta, NAMES[1])) == [NAMES[1]]
    assert needs(select(delta, NAMES[1])) == ["stacked"]
    assert list(select(delta, "model.experts.*")) == list(NAMES[:2])


@pytest.mark.parametrize("key", ["up[03]", "[3]", "up[1][2]", "up[1234567890123]"])
def test_a_writer_refuses_what_is_no_index(key: str) -> None:
    with pytest.raises(MetadataError, match="is not a parameter name"):
        meta.dump(moe(f"model.{key}").metadata)


@pytest.mark.parametrize("parameter", [Parameter((2, 3, 1), "spectral", 0, "F16", "A" * 22)])
def test_a_writer_refuses_an_expert_that_is_no_matrix(parameter: Parameter) -> None:
    with pytest.raises(MetadataError, match=r"^model.up\[3\]: a name with an index is of a spectral parameter with"):
        meta.dump(Metadata(BaseInfo({"model": ""}), {"model.up[3]": parameter}))
