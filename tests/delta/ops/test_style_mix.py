"""Style mixing: geometry from one delta, appearance from another (section 4.4, Fig. 10)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.sd15 import sd15_delta

from svdiff_delta import Delta, load, save, select, style_mix
from svdiff_delta.errors import InputError, SelectionError
from svdiff_delta.ops.replay import replay
from svdiff_delta.selectors.addresses import find_layout

LAYERS = "(16,down,1)-(8,down,0)"


def trained(seed: int) -> Delta:
    """A delta that knows where its base has cross-attention, as training writes it."""
    delta = sd15_delta(seed)
    base = replace(delta.metadata.base, sample_size=64, attentions=find_layout(delta))
    return Delta.from_stored(delta.stored, replace(delta.metadata, base=base))


@pytest.fixture(scope="module")
def pair() -> tuple[Delta, Delta]:
    return trained(1), trained(2)


def test_the_layers_are_the_geometry_s_and_all_others_the_appearance_s(pair: tuple[Delta, Delta]) -> None:
    shape, look = pair
    mixed, inside = style_mix(shape, look), set(select(shape, LAYERS))
    assert 0 < len(inside) < len(mixed) == len(shape)
    for name in mixed:
        np.testing.assert_array_equal(mixed[name], (shape if name in inside else look)[name])


def test_other_layers_may_give_the_geometry(pair: tuple[Delta, Delta]) -> None:
    shape, look = pair
    mixed = style_mix(shape, look, layers=["up.1", "mid"])
    for name in mixed:
        inside = name.startswith(("unet.up_blocks.1.", "unet.mid_block."))
        np.testing.assert_array_equal(mixed[name], (shape if inside else look)[name])


def test_an_appearance_without_those_layers_counts_as_a_whole(pair: tuple[Delta, Delta]) -> None:
    shape, look = pair[0], select(pair[1], f"!{LAYERS}")
    mixed = style_mix(select(shape, LAYERS), look)
    for name in look:
        np.testing.assert_array_equal(mixed[name], look[name])
    for name in select(shape, LAYERS):
        np.testing.assert_array_equal(mixed[name], shape[name])


def test_a_geometry_without_those_layers_is_refused(pair: tuple[Delta, Delta]) -> None:
    with pytest.raises(SelectionError, match="matches none"):
        style_mix(select(pair[0], f"!{LAYERS}"), pair[1])


def test_it_needs_a_layer(pair: tuple[Delta, Delta]) -> None:
    with pytest.raises(InputError, match="no layer gives geometry"):
        style_mix(*pair, layers=[])


def test_the_lineage_says_how_and_can_be_done_again(pair: tuple[Delta, Delta], tmp_path: Path) -> None:
    for name, delta in zip(("shape", "look"), pair, strict=True):
        save(delta, tmp_path / f"{name}.safetensors")
    mixed = style_mix(load(tmp_path / "shape.safetensors"), load(tmp_path / "look.safetensors"))
    save(mixed, tmp_path / "mixed.safetensors")
    assert mixed.metadata.lineage is not None
    assert mixed.metadata.lineage.record.arguments["weights"] == [
        {"default": 0.0, "where": [[LAYERS, 1.0]]},
        {"default": 1.0, "where": [[LAYERS, 0.0]]},
    ]
    assert replay(tmp_path / "mixed.safetensors", tmp_path).same
