"""Arithmetic on deltas, against float64 formulas."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.deltas import (
    BASE,
    CONV,
    METADATA,
    NORM,
    PARAMETERS,
    QUERY,
    TEXT,
    fingerprint,
    of_another_base,
    part,
    random_delta,
    random_values,
)

from svdiff_delta import add, interpolate, scale, select
from svdiff_delta.errors import BaseMismatchError, InputError, MetadataError, TensorError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, file_digest, loads
from svdiff_delta.format.lineage import Record
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.arithmetic import restrict
from svdiff_delta.ops.combine import widen_runs

Values = Mapping[str, NDArray[np.float32]]

A, B, C = (random_values(PARAMETERS, seed) for seed in (1, 2, 3))


def delta(values: Values, metadata: Metadata = METADATA) -> Delta:
    return Delta(values, part(metadata, *values))


def weighted(*terms: tuple[float, Values]) -> dict[str, list[float]]:
    """Σ w·δ in float64 in the order given, rounded once; what a term lacks counts as zeros."""
    result = {}
    for name in PARAMETERS:
        found = [(weight, values[name].astype(np.float64)) for weight, values in terms if name in values]
        if found:
            total = sum((weight * value for weight, value in found), np.zeros(len(found[0][1])))
            result[name] = total.astype(np.float32).tolist()
    return result


def lists(values: Mapping[str, NDArray[np.float32]]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in values.items()}


def only(values: Values, *names: str) -> Values:
    return {name: values[name] for name in names}


def test_add_is_equation_4() -> None:
    assert lists(add(delta(A), delta(B))) == weighted((1, A), (1, B))


def test_add_weighs_every_term_in_float64_and_rounds_once() -> None:
    assert lists(add(delta(A), delta(B), weights=(0.1, -0.7))) == weighted((0.1, A), (-0.7, B))


def test_add_takes_any_number_of_deltas() -> None:
    assert lists(add(delta(A))) == weighted((1, A))
    assert lists(add(delta(A), delta(B), delta(C), weights=(0.2, 3, -1))) == weighted((0.2, A), (3, B), (-1, C))


def test_a_sum_is_taken_in_the_order_given() -> None:
    values = {NORM: np.float32([1e30, 0, 0, 0, 0])}, {NORM: np.float32([1, 0, 0, 0, 0])}
    large, small = map(delta, values)
    assert add(large, small, large, weights=(1, 1, -1))[NORM][0] == 0  # 1 is lost in 1e30
    assert add(large, large, small, weights=(1, -1, 1))[NORM][0] == 1


def test_a_parameter_that_one_delta_lacks_counts_as_zeros() -> None:
    a, b = only(A, CONV, NORM), only(B, NORM, TEXT)
    assert lists(add(delta(a), delta(b), weights=(2, 3))) == weighted((2, a), (3, b))


def test_interpolate_is_equation_5_with_alpha_on_the_first() -> None:
    assert lists(interpolate(delta(A), delta(B), 0.25)) == weighted((0.25, A), (0.75, B))


def test_interpolate_counts_what_is_missing_as_zeros() -> None:
    a, b = only(A, CONV), only(B, NORM)
    assert lists(interpolate(delta(a), delta(b), 0.3)) == weighted((0.3, a), (0.7, b))


def test_scale_multiplies_every_value() -> None:
    assert lists(scale(delta(A), -0.3)) == weighted((-0.3, A))


@pytest.mark.parametrize("alpha", [-0.001, 1.0000001, 2, float("nan"), float("inf")])
def test_alpha_outside_0_to_1_is_refused_as_it_was_given(alpha: float) -> None:
    with pytest.raises(InputError, match=rf"^alpha must be within \[0, 1\], is {alpha}: use `add` with weights"):
        interpolate(delta(A), delta(B), alpha)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_the_range_of_alpha_are_in_it(alpha: int) -> None:
    assert len(interpolate(delta(A), delta(B), alpha)) == len(A)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused(factor: float) -> None:
    with pytest.raises(InputError, match=r"^weights must be finite numbers$"):
        scale(delta(A), factor)


@pytest.mark.parametrize("weights", [(), (1,), (1, 2, 3)])
def test_there_must_be_as_many_weights_as_deltas(weights: Sequence[float]) -> None:
    with pytest.raises(InputError, match=f"^2 deltas need as many weights, {len(weights)} were given$"):
        add(delta(A), delta(B), weights=weights)


def test_nothing_has_no_sum() -> None:
    with pytest.raises(InputError, match=r"^there is nothing to add: give at least one delta$"):
        add()


def test_deltas_of_different_bases_are_refused_by_the_name_of_a_parameter() -> None:
    with pytest.raises(BaseMismatchError, match=f"^{CONV}: .*different bases .*{fingerprint(2)} and .*one base"):
        add(delta(only(A, CONV)), delta(only(B, CONV), of_another_base()))


def test_slices_of_different_bases_that_do_not_overlap_are_combined() -> None:
    a, b = only(A, CONV), only(B, NORM)
    assert lists(add(delta(a), delta(b, of_another_base()))) == weighted((1, a), (1, b))


@pytest.mark.parametrize(("key", "value"), [("axis", 1), ("shape", (10, 8)), ("kind", "elementwise")])
def test_inputs_that_disagree_about_a_weight_are_refused(key: str, value: object) -> None:
    changed = replace(METADATA, parameters={QUERY: replace(PARAMETERS[QUERY], **{key: value})})
    size = changed.parameters[QUERY].size
    other = Delta({QUERY: np.zeros(size)}, changed)
    with pytest.raises(BaseMismatchError, match=f"^{QUERY}: the inputs disagree about its {key}"):
        add(delta(only(A, QUERY)), other)


def test_the_basis_dtype_may_differ_where_the_fingerprint_does_not_and_the_first_stands() -> None:
    changed = replace(METADATA, parameters={NORM: replace(PARAMETERS[NORM], dtype="BF16")})
    result = add(delta(only(A, NORM)), Delta(only(B, NORM), changed))
    assert lists(result) == weighted((1, only(A, NORM)), (1, only(B, NORM)))
    assert result.metadata.parameters[NORM].dtype == "F16"


@pytest.mark.parametrize(("dtype", "largest"), [("F16", "65504"), ("F32", "3.40282e\\+38"), ("BF16", "3.38953e\\+38")])
def test_a_result_beyond_the_dtype_is_refused_by_name(dtype: str, largest: str) -> None:
    huge = delta({NORM: np.float32([3e38, 0, 0, 0, 0])})
    with pytest.raises(
        TensorError, match=f"^{NORM}: δ reaches 6e\\+38, {dtype} ends at {largest}: use a wider `dtype`"
    ):
        add(huge, huge, dtype=dtype)


def test_a_result_beyond_float64_is_refused_without_a_warning() -> None:
    with pytest.raises(TensorError, match=f"^{NORM}: δ reaches inf"):
        scale(delta({NORM: np.float32([3e38, 0, 0, 0, 0])}), 1e300)


def test_infinity_less_infinity_is_refused_without_a_warning() -> None:
    huge = delta({NORM: np.float32([3e38, 0, 0, 0, 0])})
    with pytest.raises(TensorError, match=f"^{NORM}: δ reaches nan"):
        add(huge, huge, weights=(1e300, -1e300))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_result_is_rounded_to_the_dtype_it_is_stored_in(dtype: str) -> None:
    result = scale(delta(A), 0.3, dtype=dtype)
    assert set(result.dtypes.values()) == {dtype}
    assert lists(loads(dumps(result))) == lists(result)


def test_a_result_in_f16_is_rounded_once_from_float64() -> None:
    expected = {name: (0.3 * value.astype("f8")).astype("f2").astype("f4").tolist() for name, value in A.items()}
    assert lists(scale(delta(A), 0.3, dtype="F16")) == expected


def test_inputs_of_any_dtype_are_added() -> None:
    half = loads(dumps(delta(A), dtype="F16"))
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in A.items()}
    assert lists(add(half, delta(B))) == weighted((1, rounded), (1, B))


def test_inputs_are_left_as_they_were() -> None:
    a, b = delta(A), delta(B)
    before = dumps(a), dumps(b)
    add(a, b, weights=(2, 3))
    assert (dumps(a), dumps(b)) == before


def runs(parameter: Parameter, tied: Sequence[tuple[int, int]], null: int, seed: int) -> Delta:
    """A random delta of one weight with these tied runs and null count."""
    metadata = replace(METADATA, parameters={"unet.w": replace(parameter, tied=tuple(tied), null=null)})
    return random_delta(seed, metadata)


WIDENED = {
    "the same runs": (([(0, 1)], 1), ([(0, 1)], 1), ([(0, 1)], 1)),
    "runs apart": (([(0, 1)], 0), ([(3, 4)], 0), ([(0, 1), (3, 4)], 0)),
    "runs that touch without sharing": (([(0, 1)], 0), ([(2, 3)], 0), ([(0, 1), (2, 3)], 0)),
    "runs that share one number": (([(0, 2)], 0), ([(2, 4)], 0), ([(0, 4)], 0)),
    "a run within another": (([(0, 5)], 0), ([(2, 3)], 0), ([(0, 5)], 0)),
    "a chain of runs": (([(0, 2), (4, 6)], 0), ([(2, 4)], 0), ([(0, 6)], 0)),
    "more nulls": (([], 1), ([], 3), ([], 3)),
    "a run that becomes partly null is null": (([(3, 5)], 0), ([], 3), ([], 5)),
    "a run that ends before the nulls stays": (([(3, 4)], 0), ([], 3), ([(3, 4)], 3)),
    "a chain that reaches the nulls is null": (([(1, 3)], 0), ([(3, 5)], 2), ([(1, 5)], 2)),
}


@pytest.mark.parametrize(("a", "b", "expected"), WIDENED.values(), ids=WIDENED)
def test_runs_that_differ_are_widened_to_cover_both(
    a: tuple[list[tuple[int, int]], int],
    b: tuple[list[tuple[int, int]], int],
    expected: tuple[list[tuple[int, int]], int],
) -> None:
    weight = replace(PARAMETERS[QUERY], tied=(), null=0)
    for first, second in ((a, b), (b, a)):
        found = add(runs(weight, *first, seed=1), runs(weight, *second, seed=2)).metadata.parameters["unet.w"]
        assert (list(found.tied), found.null) == expected


def test_a_sum_is_projected_on_the_widened_runs() -> None:
    weight = replace(PARAMETERS[QUERY], tied=(), null=0)
    a, b = runs(weight, [(0, 1)], 0, seed=1), runs(weight, [(1, 3)], 2, seed=2)
    total = a["unet.w"].astype("f8") + b["unet.w"]
    total[0:4] = (total[0] + total[1] + total[2] + total[3]) / 4
    total[6:] = 0
    assert add(a, b)["unet.w"].tolist() == total.astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([(4, 5), (0, 1)], [(0, 1), (4, 5)]),
        ([(0, 9), (2, 3), (9, 10)], [(0, 10)]),
        ([(0, 1), (0, 1)], [(0, 1)]),
    ],
)
def test_the_fewest_runs_that_cover_all(given: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert widen_runs(given) == expected


def test_a_result_names_its_operation_and_the_files_it_was_made_from() -> None:
    a, b = random_delta(1, title="Dog"), random_delta(2)
    lineage = add(a, b, weights=(0.5, 2)).metadata.lineage
    files = [hashlib.sha256(dumps(delta)).hexdigest() for delta in (a, b)]
    assert lineage.record == Record("add", {"weights": [0.5, 2.0]}, tuple(files))
    assert [lineage.files[sha256].title for sha256 in files] == ["Dog", None]


@pytest.mark.parametrize(
    ("result", "record"),
    [
        (interpolate(delta(A), delta(A), 0.25), Record("interpolate", {"alpha": 0.25})),
        (scale(delta(A), 2), Record("scale", {"factor": 2.0})),
    ],
    ids=["interpolate", "scale"],
)
def test_arguments_are_recorded(result: Delta, record: Record) -> None:
    found = result.metadata.lineage.record
    assert (found.operation, found.arguments) == (record.operation, record.arguments)


def test_a_lineage_goes_back_to_every_file_once() -> None:
    trained = replace(METADATA, training={"steps": 500})
    dog, cat = random_delta(1, trained, title="Dog"), random_delta(2, trained, title="Cat")
    both = add(dog, cat)
    last = add(scale(both, 0.5), both, dog).metadata.lineage
    known = {file_digest(delta)[0]: file_digest(delta)[1] for delta in (dog, cat, both, scale(both, 0.5))}
    assert last.files == known
    assert {source.title for source in last.files.values() if source.training} == {"Dog", "Cat"}
    assert last.files[file_digest(both)[0]].record == both.metadata.lineage.record


def test_a_factor_beyond_float64_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the factor: the number is too large$"):
        scale(random_delta(1), 10**400)


def test_a_lineage_survives_the_file() -> None:
    both = add(random_delta(1), random_delta(2), weights=(0.5, 1e20))
    assert loads(dumps(both)).metadata == both.metadata


def test_training_facts_too_deep_for_a_lineage_are_refused_on_writing() -> None:
    facts: dict[str, object] = {"a": 1}
    for _ in range(7):
        facts = {"a": facts}
    scaled = scale(random_delta(1, replace(METADATA, training=facts)), 2)
    assert loads(dumps(scaled)).metadata == scaled.metadata
    deeper = scale(random_delta(1, replace(METADATA, training={"z": facts})), 2)
    with pytest.raises(MetadataError, match="nested too deeply"):
        dumps(deeper)


def test_what_the_inputs_agree_on_is_passed_on() -> None:
    spec = {"architecture": "stable-diffusion-v1", "author": "somebody"}
    a = random_delta(1, replace(METADATA, modelspec=spec), title="Dog")
    b = random_delta(2, replace(METADATA, modelspec=spec | {"author": "another"}), title="Dog")
    assert add(a, b).metadata.modelspec == {"architecture": "stable-diffusion-v1", "merged_from": "Dog"}


def test_a_title_and_training_facts_belong_to_one_input_only() -> None:
    trained = random_delta(1, replace(METADATA, training={"steps": 500}), title="Dog")
    half, sum_ = scale(trained, 0.5).metadata, add(trained, random_delta(2)).metadata
    assert (half.title, half.training) == ("Dog", {"steps": 500})
    assert (sum_.title, sum_.training) == (None, None)


def test_the_titles_of_several_inputs_are_what_a_result_is_merged_from() -> None:
    named = [random_delta(seed, title=title) for seed, title in enumerate(["Dog", None, "Cat", "Dog"])]
    both = add(*named)
    assert both.metadata.modelspec == {"merged_from": "Dog, Cat"}
    assert scale(both, 2).metadata.modelspec == {"merged_from": "Dog, Cat"}
    assert add(both, random_delta(9)).metadata.modelspec == {}


def test_a_hash_in_one_input_makes_one_in_the_result_of_its_own_tensors() -> None:
    hashed = random_delta(1, replace(METADATA, modelspec={"hash_sha256": "0x12"}))
    for result in (scale(hashed, 2), add(random_delta(2), hashed), select(hashed, "mid")):
        raw = dumps(result)
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        assert loads(raw).metadata.modelspec == {"hash_sha256": f"0x{hashlib.sha256(data).hexdigest()}"}


def test_unknown_fields_of_all_inputs_are_passed_on_and_the_first_wins() -> None:
    a = random_delta(1, replace(METADATA, extra={"a": 1, "b": 1}, foreign={"x": "1"}))
    b = random_delta(2, replace(METADATA, extra={"b": 2, "c": 2}, foreign={"x": "2", "y": "2"}))
    metadata = add(a, b).metadata
    assert metadata.extra == {"a": 1, "b": 1, "c": 2}
    assert metadata.foreign == {"x": "1", "y": "2"}


def test_components_of_all_inputs_are_named() -> None:
    a = delta(only(A, CONV), replace(METADATA, base=BaseInfo({"unet": "UNet2DConditionModel"}, "owner/base")))
    b = delta(only(B, TEXT), replace(METADATA, base=BaseInfo({"text_encoder": "CLIPTextModel"}, "owner/other")))
    assert add(a, b).metadata.base == replace(BASE, repository="owner/base", revision=None)


def test_the_repository_is_that_of_the_first_input_that_names_one() -> None:
    nameless = delta(A, replace(METADATA, base=BaseInfo(BASE.components)))
    assert add(nameless, delta(B), delta(C)).metadata.base == BASE


def test_a_restriction_leaves_values_and_dtypes_as_they_are() -> None:
    whole = loads(dumps(random_delta(1, dtypes={CONV: "BF16"})))
    found = restrict(whole, [NORM, CONV], Record("slice"))
    assert lists(found) == {CONV: whole[CONV].tolist(), NORM: whole[NORM].tolist()}
    assert (found.dtype_of(CONV), found.dtype_of(NORM)) == ("BF16", "F32")
