"""Weights of an input: one factor, and others for what selectors name (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from support.deltas import CONV, METADATA, NORM, PARAMETERS, QUERY, TEXT, random_delta
from support.sd15 import LAYOUT, sd15_delta

from svdiff_delta import Delta, add, merge, scale
from svdiff_delta.errors import InputError, SelectionError
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.ops.weights import Weight, as_weight

A, B = random_delta(1), random_delta(2)
BAD = [float("nan"), float("inf"), float("-inf")]


def test_a_number_is_the_factor_of_every_parameter() -> None:
    assert as_weight(0.5).by_name(METADATA) == dict.fromkeys(PARAMETERS, 0.5)


def test_a_mapping_is_1_where_no_selector_says_otherwise() -> None:
    assert as_weight({"unet-1d": 3, TEXT: 0}).by_name(METADATA) == {CONV: 1, NORM: 3, QUERY: 1, TEXT: 0}


def test_a_weight_stays_what_it_is() -> None:
    weight = Weight(2.0, {"unet": 0.5})
    assert as_weight(weight) is weight


def test_of_several_selectors_that_name_a_parameter_the_last_one_counts() -> None:
    assert Weight(0.0, {"unet": 1.0, "mid": 2.0}).by_name(METADATA)[NORM] == 2
    assert Weight(0.0, {"mid": 2.0, "unet": 1.0}).by_name(METADATA)[NORM] == 1


def test_a_complement_gives_a_factor_to_everything_else() -> None:
    assert Weight(7.0, {"!text": 0.5}).by_name(METADATA) == {CONV: 0.5, NORM: 0.5, QUERY: 0.5, TEXT: 7.0}


def test_an_address_gives_a_factor_to_its_block() -> None:
    factors = Weight(0.0, {"(16,down,1)": 2.0}).by_name(sd15_delta().metadata, 64)
    assert {name for name, factor in factors.items() if factor == 2} == {
        name for name in LAYOUT if name.startswith(("unet.down_blocks.2.attentions.1.", "unet.down_blocks.2.resnets.1"))
    }


def test_a_selector_of_a_weight_that_matches_nothing_is_named() -> None:
    with pytest.raises(SelectionError, match=r"^'up': matches none of the 4 parameters here"):
        Weight(1.0, {"up": 2.0}).by_name(METADATA)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda bad: Weight(bad), id="the default"),
        pytest.param(lambda bad: Weight(1.0, {"unet": 1.0, "mid": bad}), id="one of a selector"),
        pytest.param(as_weight, id="a number"),
        pytest.param(lambda bad: as_weight({"unet": bad}), id="a mapping"),
    ],
)
def test_a_factor_that_is_not_finite_is_refused(make: Callable[[float], Weight], bad: float) -> None:
    with pytest.raises(InputError, match=r"^weights must be finite numbers$"):
        make(bad)


def test_a_record_is_a_number_unless_selectors_say_otherwise() -> None:
    assert Weight(0.5).record() == 0.5
    assert Weight(0.5, {"unet": 2.0}).record() == {"default": 0.5, "where": [["unet", 2.0]]}


@pytest.mark.parametrize("operation", [add, lambda *deltas, **given: merge(deltas, **given)])
def test_addresses_in_weights_count_from_the_sample_size_that_is_given_and_recorded(
    operation: Callable[..., Delta],
) -> None:
    delta = sd15_delta()
    found = operation(delta, weights=[{"(8,down,0)": 0.0}], sample_size=64)
    assert {name for name in found if not found[name].any()} == {
        name for name in LAYOUT if name.startswith(("unet.mid_block.attentions.0.", "unet.mid_block.resnets."))
    }
    lineage = found.metadata.lineage
    assert lineage is not None
    assert lineage.record.arguments["sample_size"] == 64
    with pytest.raises(SelectionError, match="does not say how wide"):
        operation(delta, weights=[{"(8,down,0)": 0.0}])


@pytest.mark.parametrize("make", [as_weight, lambda huge: as_weight({"unet": huge})])
def test_a_number_that_float64_does_not_hold_is_refused(make: Callable[[int], Weight]) -> None:
    with pytest.raises(InputError, match="the number is too large"):
        make(10**400)


def summed(weights: list[float | Mapping[str, float] | Weight]) -> Delta:
    return add(A, B, weights=weights)


def merged(weights: list[float | Mapping[str, float] | Weight]) -> Delta:
    return merge([A, B], weights=weights)


@pytest.mark.parametrize("operation", [summed, merged])
def test_each_input_of_an_operation_has_weights_of_its_own(
    operation: Callable[[list[float | Mapping[str, float] | Weight]], Delta],
) -> None:
    found = operation([Weight(0.1, {"unet-1d": 0.7}), {TEXT: -2.5}])
    factors = {CONV: (0.1, 1.0), NORM: (0.7, 1.0), QUERY: (0.1, 1.0), TEXT: (0.1, -2.5)}
    for name, (x, y) in factors.items():
        expected = x * A[name].astype(np.float64) + y * B[name].astype(np.float64)
        assert np.array_equal(found[name], expected.astype(np.float32))
    lineage = found.metadata.lineage
    assert lineage is not None
    assert lineage.record.arguments["weights"] == [
        {"default": 0.1, "where": [["unet-1d", 0.7]]},
        {"default": 1.0, "where": [[TEXT, -2.5]]},
    ]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("operation", [summed, merged])
def test_an_operation_refuses_a_factor_that_is_not_finite(
    operation: Callable[[list[float | Mapping[str, float] | Weight]], Delta], bad: float
) -> None:
    with pytest.raises(InputError, match=r"^weights must be finite numbers$"):
        operation([1.0, {"unet": bad}])


def test_a_selector_is_looked_up_in_its_own_input() -> None:
    text = random_delta(3).metadata
    other = Delta({TEXT: B[TEXT]}, type(text)(text.base, {TEXT: PARAMETERS[TEXT]}))
    with pytest.raises(SelectionError, match="'unet'"):
        add(A, other, weights=[1.0, {"unet": 2.0}])
    assert np.array_equal(
        add(other, A, weights=[2.0, {"unet": 0.0}])[TEXT], (2 * B[TEXT].astype("f8") + A[TEXT]).astype("f4")
    )


def test_a_result_with_weights_by_selector_is_an_input_like_any_other() -> None:
    """Its arguments stand two levels deeper in the lineage of what is made of it."""
    found = loads(dumps(add(A, B, weights=[{"unet": 2.0}, 1.0])))
    again = loads(dumps(scale(found, 2.0)))
    assert np.array_equal(again[TEXT], found[TEXT] * 2)
