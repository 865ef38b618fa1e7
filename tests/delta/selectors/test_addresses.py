"""Addresses of cross-attention blocks, on the layout of Stable Diffusion 1.5 (spec, section 7.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.sd15 import LAYOUT, sd15_delta

from svdiff_delta import select
from svdiff_delta.errors import InputError, SelectionError
from svdiff_delta.selectors.addresses import Layout, addresses, find_layout, is_address, select_addresses
from svdiff_delta.selectors.match import match

FORWARD = {
    "(64,down,0)": "down_blocks.0.attentions.0",
    "(64,down,1)": "down_blocks.0.attentions.1",
    "(32,down,0)": "down_blocks.1.attentions.0",
    "(32,down,1)": "down_blocks.1.attentions.1",
    "(16,down,0)": "down_blocks.2.attentions.0",
    "(16,down,1)": "down_blocks.2.attentions.1",
    "(8,down,0)": "mid_block.attentions.0",
    "(16,up,0)": "up_blocks.1.attentions.0",
    "(16,up,1)": "up_blocks.1.attentions.1",
    "(16,up,2)": "up_blocks.1.attentions.2",
    "(32,up,0)": "up_blocks.2.attentions.0",
    "(32,up,1)": "up_blocks.2.attentions.1",
    "(32,up,2)": "up_blocks.2.attentions.2",
    "(64,up,0)": "up_blocks.3.attentions.0",
    "(64,up,1)": "up_blocks.3.attentions.1",
    "(64,up,2)": "up_blocks.3.attentions.2",
}
SD15 = Layout((2, 2, 2, 0), 1, (0, 3, 3, 3))
XL = [  # two levels with attention, and none on the way from the middle: the shape of SDXL
    *(f"unet.down_blocks.{level}.{part}.{index}.w" for level in (1, 2) for part in ("attentions", "resnets")
      for index in (0, 1)),
    *(f"unet.up_blocks.{level}.{part}.{index}.w" for level in (0, 1) for part in ("attentions", "resnets")
      for index in (0, 1, 2)),
    "unet.down_blocks.0.resnets.0.w",
    "unet.up_blocks.2.resnets.0.w",
    "unet.mid_block.attentions.0.w",
]  # fmt: skip


def parts(selector: str) -> set[str]:
    """The modules of SD 1.5, such as `mid_block.resnets.0`, of which an address names a parameter."""
    return {module(name) for name in select_addresses(LAYOUT, selector, 64)}


def module(name: str) -> str:
    """The attention, resnet or sampler that a parameter belongs to."""
    pieces = name.removeprefix("unet.").split(".")
    return ".".join(pieces[: 3 if pieces[0] == "mid_block" else 4])


def test_sd15_has_sixteen_addresses_in_the_order_of_the_forward_pass() -> None:
    found = {address: prefixes[0] for address, prefixes in addresses(SD15, 64).items()}
    assert list(found.items()) == [(address, f"unet.{place}.") for address, place in FORWARD.items()]


def test_the_layout_is_found_from_the_names_in_any_order() -> None:
    assert find_layout(LAYOUT) == find_layout(reversed(LAYOUT)) == SD15


@pytest.mark.parametrize("lost", ["mid_block", "down_blocks.0", "down_blocks.3", "up_blocks.0", "up_blocks.3"])
def test_no_layout_is_found_from_the_names_of_a_part(lost: str) -> None:
    assert find_layout(name for name in LAYOUT if lost not in name) is None


def test_a_part_whose_file_does_not_say_the_layout_has_no_addresses() -> None:
    names = [name for name in LAYOUT if "up_blocks.3" not in name]
    with pytest.raises(SelectionError, match=r"^\(8,down,0\): the file does not say where .*: slice the whole file"):
        select_addresses(names, "(8,down,0)", 64)


@pytest.mark.parametrize("selector", ["unet-ca", "mid", "!down", "up.1", "*.attentions.1.*"])
@pytest.mark.parametrize("address", ["(8,down,0)", "(16,up,1)", "(16,up,2)"])
def test_an_address_in_a_part_means_what_it_means_in_the_whole(address: str, selector: str) -> None:
    kept = match(LAYOUT, [selector])
    if expected := select_addresses(LAYOUT, address, 64) & {*kept}:
        assert select_addresses(kept, address, 64, SD15) == expected


@pytest.mark.parametrize(("address", "place"), FORWARD.items())
def test_the_resnet_before_an_attention_goes_with_it_and_both_go_with_the_middle(address: str, place: str) -> None:
    resnets = [place.replace("attentions", "resnets")]
    if place.startswith("mid_block"):
        resnets = ["mid_block.resnets.0", "mid_block.resnets.1"]
    assert parts(address) == {place, *resnets}


def test_an_address_names_every_parameter_of_its_block_and_no_other() -> None:
    found = select_addresses(LAYOUT, "(16,down,1)", 64)
    prefixes = ("unet.down_blocks.2.attentions.1.", "unet.down_blocks.2.resnets.1.")
    assert found == {name for name in LAYOUT if name.startswith(prefixes)}
    assert len(found) == 16 + 5


def test_a_range_includes_both_ends() -> None:
    assert parts("(16,down,1)-(8,down,0)") == parts("(16,down,1)") | parts("(8,down,0)")


def test_a_range_runs_through_the_middle_in_the_order_of_the_forward_pass() -> None:
    names = ["(16,down,1)", "(8,down,0)", "(16,up,0)", "(16,up,1)"]
    assert parts("(16,down,1)-(16,up,1)") == set().union(*map(parts, names))


def test_a_range_of_one_is_that_block() -> None:
    assert parts("(32,up,1)-(32,up,1)") == parts("(32,up,1)")


def test_what_has_no_attention_after_it_has_no_address() -> None:
    everything = select_addresses(LAYOUT, "(64,down,0)-(64,up,2)", 64)
    rest = {module(name) for name in LAYOUT.keys() - everything}
    assert rest == {
        *(f"{end}.weight" for end in ("conv_in", "conv_out", "conv_norm_out")),
        *(f"time_embedding.linear_{number}.weight" for number in (1, 2)),
        *(f"down_blocks.{level}.downsamplers.0" for level in (0, 1, 2)),
        *(f"up_blocks.{level}.upsamplers.0" for level in (0, 1, 2)),
        *(f"down_blocks.3.resnets.{index}" for index in (0, 1)),
        *(f"up_blocks.0.resnets.{index}" for index in (0, 1, 2)),
    }


def test_blocks_of_one_resolution_are_counted_through_the_middle() -> None:
    layout = find_layout(XL)
    assert layout == Layout((0, 2, 2), 1, (3, 3, 0))
    found = {address: prefixes[0] for address, prefixes in addresses(layout, 128).items()}
    assert found["(32,down,2)"] == "unet.mid_block.attentions.0."
    assert list(found)[:5] == ["(64,down,0)", "(64,down,1)", "(32,down,0)", "(32,down,1)", "(32,down,2)"]
    assert list(found)[5:] == [f"({size},up,{index})" for size in (32, 64) for index in (0, 1, 2)]


def test_other_components_have_no_addresses() -> None:
    names = [name.replace("unet.", "other.") for name in LAYOUT]
    assert find_layout(names) is None


@pytest.mark.parametrize("text", ["(16,down,1)", "( 16 , 'down' , 1 )", "(16,'down',1) - (8,down,0)"])
def test_spaces_and_quotes_are_allowed(text: str) -> None:
    assert is_address(text)
    assert "down_blocks.2.attentions.1" in parts(text)


@pytest.mark.parametrize("text", ["(16,mid,1)", "(16,down)", "16,down,1", "(16,down,1)-", "(16,down,-1)", "(a,up,1)"])
def test_what_is_written_otherwise_is_no_address(text: str) -> None:
    assert not is_address(text)
    with pytest.raises(SelectionError, match=r"is not an address: write it as \(16,down,1\)"):
        select_addresses(LAYOUT, text, 64)


@pytest.mark.parametrize("address", ["(16,down,2)", "(8,up,0)", "(4,down,0)", "(128,down,0)"])
def test_a_block_that_is_not_there_is_refused_with_those_that_are(address: str) -> None:
    with pytest.raises(SelectionError) as caught:
        select_addresses(LAYOUT, f"{address}-(64,up,0)", 64)
    assert caught.value.message == f"{address}: there is no such cross-attention block at sample size 64"
    assert caught.value.fix == f"there are {' '.join(FORWARD)}"


def test_a_range_is_refused_by_the_end_that_is_not_there() -> None:
    with pytest.raises(SelectionError, match=r"^\(64,up,3\): there is no such"):
        select_addresses(LAYOUT, "(64,down,0)-(64,up,3)", 64)


def test_without_cross_attention_there_are_no_addresses_to_choose_from() -> None:
    with pytest.raises(SelectionError, match=r"^\(16,down,1\): .* at sample size 64: there are none$"):
        select_addresses(["unet.conv_in.weight"], "(16,down,1)", 64, Layout((0,), 0, (0,)))


def test_a_range_that_runs_backwards_is_refused_with_the_one_that_runs_forwards() -> None:
    with pytest.raises(SelectionError, match=r"runs backwards: write \(16,down,1\)-\(8,down,0\)$"):
        select_addresses(LAYOUT, "(8,down,0)-(16,down,1)", 64)


def test_without_a_sample_size_an_address_is_refused_with_the_option_that_gives_one() -> None:
    with pytest.raises(SelectionError, match=r"^\(16,down,1\): the file does not say .*: give `sample_size` \(64 for"):
        match(LAYOUT, ["(16,down,1)"])


def test_addresses_count_from_what_the_file_says_unless_told_otherwise() -> None:
    delta = sd15_delta()
    metadata = replace(delta.metadata, base=replace(delta.metadata.base, sample_size=96))
    known = type(delta).from_stored(delta.stored, metadata)
    expected = select_addresses(LAYOUT, "(16,down,1)", 64)
    assert set(select(known, "(24,down,1)")) == expected
    assert set(select(known, "(16,down,1)", sample_size=64)) == expected


@pytest.mark.parametrize("size", [0, -64])
def test_a_sample_size_below_1_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"^the sample size must be at least 1, is {size}$"):
        select(sd15_delta(), "(16,down,1)", sample_size=size)


def test_a_slice_records_the_sample_size_that_was_given() -> None:
    lineage = select(sd15_delta(), "(16,down,1)", sample_size=64).metadata.lineage
    assert lineage is not None
    assert lineage.record.arguments == {"selectors": ["(16,down,1)"], "sample_size": 64}
