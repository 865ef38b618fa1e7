"""What merge methods take and record, and what merging refuses."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.deltas import NORM, norm_delta, of_another_base, random_delta

from svdiff_delta import Delta, merge
from svdiff_delta.errors import BaseMismatchError, InputError, SelectionError, TensorError
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge import METHODS
from svdiff_delta.ops.merge.method import Options

A, B = (random_delta(seed) for seed in (1, 2))


def arguments(delta: Delta) -> Mapping[str, object]:
    lineage = delta.metadata.lineage
    assert lineage is not None
    assert lineage.record.operation == "merge"
    return lineage.record.arguments


@pytest.mark.parametrize(
    ("method", "options", "recorded"),
    [
        ("linear", {}, {"weights": [1, 1]}),
        ("slerp", {"alpha": 0.25}, {"alpha": 0.25}),
        ("ties", {"density": 0.5, "weights": [2, {"unet": 3}]},
         {"density": 0.5, "weights": [2, {"default": 1, "where": [["unet", 3]]}]}),
        ("magnitude", {"density": 0.5}, {"density": 0.5, "weights": [1, 1]}),
        ("dare_linear", {"density": 0.5}, {"density": 0.5, "seed": 0, "weights": [1, 1]}),
        ("dare_ties", {"density": 0.5, "seed": 9, "dtype": "F16"},
         {"density": 0.5, "seed": 9, "weights": [1, 1], "dtype": "F16"}),
    ],
)  # fmt: skip
def test_method_options_and_weights_are_recorded(
    method: str, options: dict[str, object], recorded: dict[str, object]
) -> None:
    found = merge([A, B], method=method, **options)  # type: ignore[arg-type]
    assert arguments(found) == {"method": method, **recorded}


NEEDS = {
    "linear": set[str](),
    "slerp": {"alpha"},
    "ties": {"density"},
    "magnitude": {"density"},
    "dare_linear": {"density", "seed"},
    "dare_ties": {"density", "seed"},
}


@pytest.mark.parametrize("option", ["density", "alpha", "seed"])
@pytest.mark.parametrize("method", NEEDS)
def test_an_option_that_a_method_does_not_take_is_refused_by_both_names(method: str, option: str) -> None:
    needed = {key: 0.5 for key in NEEDS[method] if key != "seed"}
    given: dict[str, float] = needed | {option: 1}
    if option in NEEDS[method]:
        assert arguments(merge([A, B], method=method, **given))[option] == 1  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=f"^{method} takes no {option}"):
        merge([A, B], method=method, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [method for method in NEEDS if method != "linear"])
def test_an_option_that_a_method_lacks_is_named(method: str) -> None:
    lacking = "alpha" if method == "slerp" else "density"
    with pytest.raises(InputError, match=f"^{method} needs {lacking}: give {lacking}, such as 0.5$"):
        merge([A, B], method=method)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        *(("density", value, r"density must be within \(0, 1\]") for value in (0.0, -0.1, 1.1, float("nan"))),
        *(("alpha", value, r"alpha must be within \[0, 1\]") for value in (-0.1, 1.1, float("nan"), float("inf"))),
        *(("seed", value, r"seed must be a whole number from 0 to 2\^53 - 1") for value in (-1, 2**53)),
    ],
)
def test_an_option_out_of_range_is_refused_as_it_was_given(key: str, value: float, reason: str) -> None:
    with pytest.raises(InputError, match=f"^{reason}, is {value}$"):
        Options(**{key: value})  # type: ignore[arg-type]


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=f"^'tiez': no such merge method: known are {', '.join(METHODS)}$"):
        merge([A, B], method="tiez")


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 1.0, 1.0]])
def test_there_must_be_a_weight_for_each_input(weights: list[float]) -> None:
    with pytest.raises(InputError, match=f"^2 deltas need as many weights, {len(weights)} were given$"):
        merge([A, B], weights=weights)


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(InputError, match=r"^there is nothing to merge: give at least one delta$"):
        merge([])


def test_deltas_of_different_bases_are_not_merged() -> None:
    with pytest.raises(BaseMismatchError, match="different bases"):
        merge([A, random_delta(2, of_another_base())])


def test_a_selector_that_matches_nothing_is_named() -> None:
    with pytest.raises(SelectionError, match="'up'"):
        merge([A, B], weights=[{"up": 1}, 1])


def test_a_result_beyond_its_number_format_is_refused_by_name() -> None:
    with pytest.raises(TensorError, match=f"^{NORM}: δ reaches 70000, F16 ends at 65504"):
        merge([norm_delta([7, 0])], weights=[1e4], dtype="F16")


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_as_they_were(method: str) -> None:
    before = dumps(A), dumps(B)
    merge([A, B], method=method, **{key: 0.5 for key in NEEDS[method] if key != "seed"})  # type: ignore[arg-type]
    assert (dumps(A), dumps(B)) == before


def test_a_result_beyond_float64_is_refused_without_a_warning() -> None:
    huge = norm_delta([3e38, 0, 0])
    with pytest.raises(TensorError, match=f"^{NORM}: δ reaches"):
        merge([huge, huge], method="linear", weights=[1e300, -1e300])
