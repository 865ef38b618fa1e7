"""What a conversion leaves behind: shares of energy, and the checks that all conversions share."""

from __future__ import annotations

import pytest
from support.deltas import random_delta

from svdiff_delta.conversion.result import Conversion, check_arguments, check_captured, check_left_out, recorded_share
from svdiff_delta.errors import InputError
from svdiff_delta.svd.energy import Energy

LAYERS = {"a": Energy(3.0, 1.0), "b": Energy(1.0, 1.0)}


def test_the_whole_is_captured_by_energy_and_not_by_number() -> None:
    found = Conversion(random_delta(), LAYERS)
    assert [layer.captured for layer in LAYERS.values()] == [1 / 3, 1.0]
    assert (found.captured, found.energy) == (0.5, Energy(4.0, 2.0))


def test_where_nothing_changes_all_is_captured() -> None:
    assert Energy(0.0, 0.0).captured == 1
    assert Conversion(random_delta(), {}).captured == 1


def test_the_recorded_share_does_not_depend_on_the_order_of_sums() -> None:
    layers = [Energy(3.0, 1.0 + 1e-12), Energy(1.0, 1e-16)]
    assert recorded_share(layers) == recorded_share(reversed(layers)) == 0.25


def test_a_least_energy_is_reached_by_just_that_much() -> None:
    check_captured(LAYERS.values(), 0.5)
    with pytest.raises(InputError, match=r"^only 50\.00% of the change is captured, less .* 51\.00%"):
        check_captured(LAYERS.values(), 0.51)


@pytest.mark.parametrize("share", [-1e-9, 1 + 1e-9, float("nan"), float("inf")])
def test_a_least_energy_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match="the least captured energy must be within"):
        check_arguments(share, "F32")


def test_what_is_left_out_is_named_in_order_and_counted() -> None:
    reasons = {name: f"is {name.upper()}" for name in "dcba"}
    check_left_out({}, "x", allow_unmatched=False)
    check_left_out(reasons, "x", allow_unmatched=True)
    with pytest.raises(InputError) as caught:
        check_left_out(reasons, "x", allow_unmatched=False)
    named = "a (is A), b (is B), c (is C), and 1 more"
    assert caught.value.message == f"x: 4 weights cannot be carried over: {named}"
