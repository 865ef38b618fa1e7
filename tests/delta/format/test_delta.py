"""The delta: an immutable mapping of valid shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.bytes import NAME, delta_file
from support.deltas import CONV, METADATA, NORM, PARAMETERS, QUERY, TEXT, parameter, part, random_delta, random_values

from svdiff_delta.errors import TensorError
from svdiff_delta.format.delta import Delta, check_range, check_shift, project
from svdiff_delta.format.file import loads


def one(values: object, **runs: object) -> Delta:
    """A delta of one 6x6 weight."""
    return Delta({"u.w": values}, replace(METADATA, parameters={"u.w": parameter(6, 6, **runs)}))


def test_it_is_a_mapping_in_sorted_order() -> None:
    values = random_values(PARAMETERS, 1)
    delta = Delta(dict(reversed(values.items())), METADATA)
    assert list(delta) == [TEXT, CONV, NORM, QUERY]
    assert len(delta) == 4
    for name, value in delta.items():
        assert np.array_equal(value, values[name])


def test_it_contains_its_parameters_and_nothing_else() -> None:
    delta = random_delta(1)
    assert CONV in delta
    assert "unet.conv_out.weight" not in delta


def test_an_unknown_name_is_a_key_error_as_in_any_mapping() -> None:
    with pytest.raises(KeyError, match="conv_out"):
        random_delta(1)["unet.conv_out.weight"]


def test_values_are_float32_whatever_was_given() -> None:
    assert one([1, 2, 3, 4, 5, 6])["u.w"].dtype == np.float32


def test_values_cannot_be_changed() -> None:
    delta = random_delta(1)
    with pytest.raises(ValueError, match="read-only"):
        delta[CONV][0] = 1


def test_changing_what_it_was_made_from_does_not_change_it() -> None:
    given = np.ones(6, dtype=np.float32)
    delta = one(given)
    given[:] = 2
    assert delta["u.w"].tolist() == [1] * 6


def test_it_says_how_large_it_is() -> None:
    assert repr(random_delta(1)) == "Delta(4 parameters, 23 numbers)"
    assert repr(random_delta(1, title="Dog")) == "Delta('Dog', 4 parameters, 23 numbers)"


def test_a_title_changes_nothing_else() -> None:
    delta = random_delta(1, dtypes={CONV: "F16"})
    titled = delta.with_title("Dog")
    assert titled.metadata == delta.metadata.with_title("Dog")
    assert titled.dtypes == delta.dtypes
    assert {name: value.tolist() for name, value in titled.items()} == {
        name: value.tolist() for name, value in delta.items()
    }


def test_a_dtype_that_is_not_named_is_f32() -> None:
    delta = random_delta(1, dtypes={CONV: "BF16"})
    assert (delta.dtype_of(CONV), delta.dtype_of(NORM)) == ("BF16", "F32")


@pytest.mark.parametrize(("extra", "odd"), [([CONV], QUERY), ([CONV, QUERY, "unet.a"], "unet.a")])
def test_values_and_metadata_must_name_the_same_parameters(extra: list[str], odd: str) -> None:
    with pytest.raises(TensorError, match=f"^{odd}: values and metadata must name the same"):
        Delta({name: [0.0] for name in extra}, part(METADATA, CONV, QUERY))


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), ()], ids=str)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorError, match=r"^u\.w: δ has shape .* its weight needs \[6\]$"):
        one(np.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_what_is_not_finite_in_float32_is_refused(value: float) -> None:
    with pytest.raises(TensorError, match=r"^u\.w: δ holds NaN or infinity: train or convert it again$"):
        one([0, 0, value, 0, 0, 0])


def test_what_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(TensorError, match=r"^u\.w: δ reaches 1e\+39, F32 ends at 3\.40282e\+38: use a wider `dtype`$"):
        one([0, 0, 1e39, 0, 0, 0])


def test_a_tied_run_that_differs_is_refused() -> None:
    with pytest.raises(TensorError, match=r"^u\.w: δ differs within the tied run 2-4, where it must be equal$"):
        one([0, 1, 2, 2, 3, 5], tied=((2, 4),))


def test_equal_values_in_a_tied_run_are_fine() -> None:
    assert one([0, 1, 2, 2, 2, 5], tied=((2, 4),))["u.w"].tolist() == [0, 1, 2, 2, 2, 5]


def test_a_shift_of_a_null_singular_value_is_refused() -> None:
    with pytest.raises(TensorError, match=r"^u\.w: δ must be 0 on the 2 null singular values$"):
        one([0, 1, 2, 3, 0, 5], null=2)


def test_a_file_is_checked_where_it_is_read_and_the_error_names_the_file() -> None:
    delta = loads(delta_file(body=np.array([0, np.nan, 0], "<f4").tobytes()), name="dog.safetensors")
    with pytest.raises(TensorError, match=rf"^dog\.safetensors: {NAME}: δ holds NaN"):
        delta[NAME]


def test_asking_whether_a_name_is_there_reads_no_value() -> None:
    assert NAME in loads(delta_file(body=np.array([0, np.nan, 0], "<f4").tobytes()))


def test_a_file_without_a_name_leaves_the_name_out_of_the_error() -> None:
    delta = loads(delta_file(body=np.array([0, np.nan, 0], "<f4").tobytes()))
    with pytest.raises(TensorError, match=f"^{NAME}: δ holds NaN"):
        delta[NAME]


def test_projection_puts_the_mean_into_tied_runs_and_zero_where_sigma_is_null() -> None:
    shift = np.array([1.0, 3.0, 7.0, 10.0, 20.0, 60.0])
    found = project(parameter(6, 6, tied=((0, 1), (2, 3)), null=1), shift)
    assert found.tolist() == [2, 2, 8.5, 8.5, 20, 0]
    assert shift[0] == 1


def test_projection_leaves_a_weight_without_runs_alone() -> None:
    shift = np.array([1.0, 3.0])
    assert project(parameter(2, 2), shift).tolist() == [1, 3]


def test_a_projected_shift_is_valid() -> None:
    runs = parameter(6, 6, tied=((0, 2), (3, 4)), null=1)
    check_shift("u.w", runs, project(runs, np.random.default_rng(0).standard_normal(6)).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "value"), [("F16", 65504.5), ("BF16", 3.3896e38), ("F32", 3.403e38), ("F32", np.inf), ("F32", np.nan)]
)
def test_a_value_beyond_the_dtype_is_refused(dtype: str, value: float) -> None:
    with pytest.raises(TensorError, match=rf"^u\.w: δ reaches .* {dtype} ends at .*: use a wider `dtype`$"):
        check_range("u.w", np.array([0.0, -value]), dtype)


@pytest.mark.parametrize(("dtype", "value"), [("F16", 65504), ("BF16", 3.38e38), ("F32", 3.402e38)])
def test_a_value_within_the_dtype_is_fine(dtype: str, value: float) -> None:
    check_range("u.w", np.array([0.0, -value]), dtype)
