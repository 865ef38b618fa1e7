"""Selectors: the paper's subsets on the real layout, globs and names."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.deltas import CONV, NORM, QUERY, TEXT, random_delta
from support.sd15 import LAYOUT, sd15_delta

from svdiff_delta import select
from svdiff_delta.errors import SelectionError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.lineage import Record
from svdiff_delta.selectors.match import match
from svdiff_delta.selectors.subsets import PAPER, SPELLED

TABLE_1 = {
    "unet": (391, 322_856),
    "unet-ca": (64, 43_776),
    "unet-ca-kv": (32, 18_816),
    "unet-1d": (109, 100_160),
    "unet-2d": (184, 140_416),
    "unet-4d": (98, 82_280),
    "up": (None, 181_568),
    "down": (None, 107_072),
    "mid": (None, 32_256),
    "up-ca": (36, 23_808),
    "down-ca": (24, 15_872),
    "mid-ca": (4, 4_096),
}


@pytest.fixture(scope="module")
def sd15() -> Delta:
    return sd15_delta()


def test_there_are_the_twelve_subsets_of_table_1() -> None:
    assert list(PAPER) == list(TABLE_1)


@pytest.mark.parametrize("subset", TABLE_1)
def test_a_subset_of_sd15_has_as_many_numbers_as_in_table_1(sd15: Delta, subset: str) -> None:
    parameters, numbers = TABLE_1[subset]
    found = select(sd15, subset)
    assert sum(len(value) for value in found.values()) == numbers
    assert parameters in (None, len(found))


def test_the_blocks_and_what_lies_outside_them_are_the_whole_unet(sd15: Delta) -> None:
    outside = ["unet.conv_*", "unet.time_embedding.*"]
    parts = [set(select(sd15, *selectors)) for selectors in (["up"], ["down"], ["mid"], outside)]
    assert set().union(*parts) == LAYOUT.keys()
    assert sum(map(len, parts)) == len(LAYOUT)


def test_the_kinds_are_the_whole_unet(sd15: Delta) -> None:
    assert set(select(sd15, "unet-1d", "unet-2d", "unet-4d")) == LAYOUT.keys()


def test_cross_attention_is_attn2_and_not_attn1(sd15: Delta) -> None:
    names = set(select(sd15, "mid-ca"))
    block = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    assert names == {f"{block}.{end}.weight" for end in ("to_q", "to_k", "to_v", "to_out.0")}


def test_a_subset_leaves_other_components_out() -> None:
    assert set(select(random_delta(1), "unet")) == {CONV, NORM, QUERY}


@pytest.mark.parametrize(
    ("selectors", "names"),
    [
        pytest.param([CONV], [CONV], id="a name"),
        pytest.param(["*"], [TEXT, CONV, NORM, QUERY], id="everything"),
        pytest.param(["text_encoder.*"], [TEXT], id="a component"),
        pytest.param(["*norm*"], [NORM], id="a part of a name"),
        pytest.param(["unet.conv_?n.weight"], [CONV], id="one character"),
        pytest.param(["unet.[a-c]*"], [CONV], id="a range of characters"),
        pytest.param(["mid", "text_encoder.*", "unet-1d"], [TEXT, NORM, QUERY], id="several, in sorted order, once"),
    ],
)
def test_selectors_name_parameters(selectors: list[str], names: list[str]) -> None:
    assert list(select(random_delta(1), *selectors)) == names


def test_globs_are_case_sensitive() -> None:
    with pytest.raises(SelectionError, match="matches none"):
        select(random_delta(1), "UNET.*")


def test_a_slice_leaves_values_and_dtypes_as_they_are() -> None:
    whole = loads(dumps(random_delta(1, dtypes={CONV: "F16", NORM: "BF16"})))
    part = select(whole, "unet")
    assert all(np.array_equal(part[name], whole[name]) for name in part)
    assert {name: part.dtype_of(name) for name in part} == {CONV: "F16", NORM: "BF16", QUERY: "F32"}


def test_a_slice_records_its_selectors_as_they_were_given() -> None:
    record = select(random_delta(1), "mid", "*norm*").metadata.lineage.record
    assert (record.operation, record.arguments) == ("slice", {"selectors": ["mid", "*norm*"]})
    assert isinstance(record, Record)


def test_an_unknown_selector_lists_the_known_subsets() -> None:
    with pytest.raises(SelectionError, match=f"^'unet-xa': is neither .* or {re.escape(SPELLED)}$"):
        select(random_delta(1), "unet-xa")


def test_a_glob_that_matches_nothing_says_among_how_many() -> None:
    with pytest.raises(
        SelectionError, match=r"^'vae\.\*': matches none of the 4 parameters here: see `list\(delta\)`$"
    ):
        select(random_delta(1), "vae.*")


def test_a_subset_that_matches_nothing_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"^'up': matches none of the 4 parameters here"):
        select(random_delta(1), "up")


def test_one_selector_that_matches_nothing_fails_all() -> None:
    with pytest.raises(SelectionError, match="'up'"):
        select(random_delta(1), "mid", "up")


def test_no_selector_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"^no selector was given: name a component \(unet, "):
        select(random_delta(1))


def test_shapes_alone_are_enough() -> None:
    assert match(LAYOUT, ["unet.conv_out.weight"]) == ["unet.conv_out.weight"]
