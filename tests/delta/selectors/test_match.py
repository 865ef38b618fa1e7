"""Selectors by the first rule that applies, their unions and complements (spec, section 7.5)."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from support.deltas import CONV, NORM, PARAMETERS, QUERY, TEXT, random_delta
from support.sd15 import LAYOUT

from svdiff_delta import add, select
from svdiff_delta.errors import SelectionError
from svdiff_delta.selectors.match import match
from svdiff_delta.selectors.subsets import PAPER, SPELLED, subset

CROSS = re.compile(r"\.attn2\.to_(q|k|v|out\.0)\.weight$")
TABLE_1: dict[str, Callable[[str], bool]] = {  # the spec's table, as prefixes, patterns and dimensions
    "unet": lambda name: True,
    "unet-ca": lambda name: CROSS.search(name) is not None,
    "unet-ca-kv": lambda name: re.search(r"\.attn2\.to_[kv]\.weight$", name) is not None,
    "unet-1d": lambda name: len(LAYOUT[name]) == 1,
    "unet-2d": lambda name: len(LAYOUT[name]) == 2,
    "unet-4d": lambda name: len(LAYOUT[name]) == 4,
    "up": lambda name: name.startswith("unet.up_blocks."),
    "down": lambda name: name.startswith("unet.down_blocks."),
    "mid": lambda name: name.startswith("unet.mid_block."),
    "up-ca": lambda name: name.startswith("unet.up_blocks.") and CROSS.search(name) is not None,
    "down-ca": lambda name: name.startswith("unet.down_blocks.") and CROSS.search(name) is not None,
    "mid-ca": lambda name: name.startswith("unet.mid_block.") and CROSS.search(name) is not None,
}
SHAPES = {name: parameter.shape for name, parameter in PARAMETERS.items()}
OTHERS = {
    "text_encoder.layers.0.self_attn.q_proj.weight": (8, 8),
    "text_encoder_2.layers.0.mlp.fc1.weight": (8, 8),
    "text_encoder_3.block.0.layer.0.SelfAttention.q.weight": (8, 8),
    "transformer.blocks.0.attn.to_q.weight": (8, 8),
    "transformer.blocks.0.ff.net.0.proj.weight": (8, 8),
    "transformer.norm_out.weight": (8,),
    "unet.conv_in.weight": (8, 4, 3, 3),
    "unet2.conv_in.weight": (8, 4, 3, 3),
}


def test_the_twelve_subsets_are_those_of_the_table() -> None:
    assert list(PAPER) == list(TABLE_1)


@pytest.mark.parametrize("name", TABLE_1)
def test_a_subset_names_what_its_row_of_the_table_says(name: str) -> None:
    assert match(LAYOUT, [name]) == sorted(filter(TABLE_1[name], LAYOUT))


@pytest.mark.parametrize("name", ["UNET-CA", "Unet-ca", "MID", "Down.1", "1D"])
def test_subsets_and_blocks_are_named_in_any_case(name: str) -> None:
    assert match(LAYOUT, [name]) == match(LAYOUT, [name.lower()])


@pytest.mark.parametrize(("way", "level"), [(way, level) for way in ("down", "up") for level in range(4)])
def test_a_level_is_named_by_way_and_number(way: str, level: int) -> None:
    prefix = f"unet.{way}_blocks.{level}."
    assert match(LAYOUT, [f"{way}.{level}"]) == [name for name in LAYOUT if name.startswith(prefix)]


def test_level_1_is_not_level_10() -> None:
    shapes = {"unet.up_blocks.1.w": (2, 2), "unet.up_blocks.10.w": (2, 2)}
    assert match(shapes, ["up.1"]) == ["unet.up_blocks.1.w"]
    assert match(shapes, ["up.10"]) == ["unet.up_blocks.10.w"]


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_a_kind_counts_dimensions_in_every_component(dims: int) -> None:
    names = [name for name, shape in SHAPES.items() if len(shape) == dims]
    assert match(SHAPES, [f"{dims}d"]) == sorted(names)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("transformer", ["to_q", "proj", "norm_out"]),
        ("transformer-attn", ["to_q"]),
        ("transformer-mlp", ["proj"]),
        ("transformer-1d", ["norm_out"]),
        ("transformer-2d", ["to_q", "proj"]),
        ("text", ["q_proj", "fc1", "q"]),
        ("text-attn", ["q_proj", "q"]),
        ("text-mlp", ["fc1"]),
        ("text-1", ["q_proj"]),
        ("text-2", ["fc1"]),
        ("text-3", ["q"]),
    ],
)
def test_transformers_and_text_encoders_have_subsets_of_their_own(name: str, ends: list[str]) -> None:
    assert [found.split(".")[-2] for found in match(OTHERS, [name])] == [
        end for end in ["q_proj", "fc1", "q", "to_q", "proj", "norm_out"] if end in ends
    ]


def test_a_component_whose_name_begins_alike_is_another() -> None:
    assert match(OTHERS, ["unet"]) == ["unet.conv_in.weight"]


def test_an_unknown_name_is_no_subset() -> None:
    assert subset("unet-3d") is None
    assert subset("down.100") is None


def test_the_name_of_a_parameter_comes_before_a_subset_and_a_glob() -> None:
    shapes = {"mid": (2,), "unet.mid_block.w": (2,), "a.[x]": (2,), "a.x": (2,)}
    assert match(shapes, ["mid"]) == ["mid"]
    assert match(shapes, ["a.[x]"]) == ["a.[x]"]


@pytest.mark.parametrize(
    "selector", ["block.\u0663", "down.\u0660", "(\u0668,down,0)", "(8,\tdown,0)", "prior-", "block.1000"]
)
def test_numbers_are_of_ascii_digits_and_nothing_is_guessed(selector: str) -> None:
    shapes = {"unet.down_blocks.0.attentions.0.x": (2, 2), "prior.blocks.3.x": (2, 2), "unet.mid_block.x": (2, 2)}
    with pytest.raises(SelectionError):
        match(shapes, [selector], sample_size=8)


def test_components_whose_names_differ_in_case_alone_are_named_together() -> None:
    shapes = {"Prior.blocks.0.attn.x": (2, 2), "prior.blocks.0.attn.x": (2, 2), "other.blocks.0.attn.x": (2, 2)}
    assert match(shapes, ["PRIOR-attn"]) == ["Prior.blocks.0.attn.x", "prior.blocks.0.attn.x"]


def test_several_selectors_name_the_union_once_and_sorted() -> None:
    assert match(LAYOUT, ["up-ca", "mid", "mid-ca", "down-ca"]) == sorted(
        name for name in LAYOUT if TABLE_1["unet-ca"](name) or TABLE_1["mid"](name)
    )


def test_a_complement_takes_away_what_the_others_name_wherever_it_stands() -> None:
    expected = [name for name in LAYOUT if TABLE_1["up"](name) and not TABLE_1["unet-ca"](name)]
    assert match(LAYOUT, ["up", "!unet-ca"]) == match(LAYOUT, ["!unet-ca", "up"]) == expected


def test_complements_alone_take_away_from_everything() -> None:
    assert match(SHAPES, ["!unet-4d", f"!{TEXT}"]) == [NORM, QUERY]


def test_a_complement_of_an_address_is_everything_else() -> None:
    block = match(LAYOUT, ["(8,down,0)"], sample_size=64)
    rest = match(LAYOUT, ["!(8,down,0)"], sample_size=64)
    assert sorted(block + rest) == list(LAYOUT)


@pytest.mark.parametrize("selector", ["unet", "mid", "1d", "*norm*", CONV, "text_encoder.*"])
def test_a_slice_and_its_complement_add_up_to_the_whole(selector: str) -> None:
    whole = random_delta(1)
    part, rest = select(whole, selector), select(whole, f"!{selector}")
    total = add(part, rest)
    assert not part.keys() & rest.keys()
    assert list(total) == list(whole)
    assert all(np.array_equal(total[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("glob", "names"), [("unet.[!m]*", [CONV]), ("*.?onv_in.*", [CONV]), ("*to_q*", [QUERY])])
def test_a_glob_is_matched_against_the_whole_name(glob: str, names: list[str]) -> None:
    assert match(SHAPES, [glob]) == names


@pytest.mark.parametrize("selector", ["up", "up.2", "unet.vae*", "text-2", "conv_in*"])
@pytest.mark.parametrize("sign", ["", "!"])
def test_a_selector_that_matches_nothing_is_named(selector: str, sign: str) -> None:
    with pytest.raises(SelectionError, match=rf"^'{re.escape(selector)}': matches none of the 4 parameters here"):
        match(SHAPES, ["unet", sign + selector])


@pytest.mark.parametrize("selector", ["", "unet-3d", "conv_in", "UNET.CONV_IN.WEIGHT", "(16,mid,1)"])
@pytest.mark.parametrize("sign", ["", "!"])
def test_an_unknown_selector_is_named(selector: str, sign: str) -> None:
    with pytest.raises(SelectionError, match=rf"^'{re.escape(selector)}': is neither a subset nor a parameter here"):
        match(SHAPES, ["unet", sign + selector])


def test_selectors_that_leave_nothing_are_refused() -> None:
    with pytest.raises(SelectionError, match=r"^nothing is left of 4 parameters: remove a selector that begins with !"):
        match(SHAPES, ["unet", "!*"])


def test_no_selector_at_all_is_refused() -> None:
    with pytest.raises(SelectionError, match=re.escape(f"no selector was given: name {SPELLED}") + "$"):
        match(SHAPES, [])
