"""Merge methods, each against plain Python written from its definition (spec, section 7.6, and the papers it cites)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import atan2, cos, floor, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
from support.commands import python
from support.deltas import (
    CONV,
    METADATA,
    NORM,
    PARAMETERS,
    QUERY,
    TEXT,
    of_another_base,
    parameter,
    part,
    random_delta,
    saved,
)

from svdiff_delta import Delta, add, interpolate, merge
from svdiff_delta.errors import BaseMismatchError, InputError, SelectionError, TensorError
from svdiff_delta.file import dumps
from svdiff_delta.merge import METHODS
from svdiff_delta.merge.method import Options

Vector = list[float]
Reference = Callable[[list[Vector], Sequence[float], str], Vector]

A, B, C = (random_delta(seed) for seed in (1, 2, 3))
WEIGHTS = (0.7, -1.3, 2.1)
TRIMMED = ["magnitude", "ties"]
DRAWN = ["dare_linear", "dare_ties"]
DENSE = [*TRIMMED, *DRAWN]
DENSITIES = [0.05, 0.3, 0.5, 0.8, 1.0]


def coordinates(name: str, delta: Delta) -> Vector:
    """The free numbers of a parameter: one for each tied run, none for nulls."""
    item = PARAMETERS[name]
    inner = {index for first, last in item.tied for index in range(first + 1, last + 1)}
    return [float(x) for index, x in enumerate(delta[name]) if index < item.size - item.null and index not in inner]


def spread(name: str, free: Vector) -> list[float]:
    """Entries from coordinates, rounded to float32."""
    item, left, result = PARAMETERS[name], list(free), list[float]()
    ends = dict(item.tied)
    while len(result) < item.size - item.null:
        result += [left.pop(0)] * (ends.get(len(result), len(result)) - len(result) + 1)
    assert not left
    return [float(np.float32(x)) for x in result + [0.0] * item.null]


def trim(values: Vector, density: float) -> Vector:
    count = max(1, floor(density * len(values) + 0.5))
    kept = sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))[:count]
    return [x if index in kept else 0.0 for index, x in enumerate(values)]


def drop(values: Vector, density: float, seed: int, number: int, name: str) -> Vector:
    stream = hashlib.shake_256(f"svdiff draw 1\n{seed}\n{number}\n{name}".encode()).digest(8 * len(values))
    draws = [(int.from_bytes(stream[i : i + 8], "little") >> 11) / 2**53 for i in range(0, len(stream), 8)]
    return [x / density if draw < density else 0.0 for x, draw in zip(values, draws, strict=True)]


def weighted(rows: list[Vector], weights: Sequence[float]) -> Vector:
    return [sum((w * x for w, x in zip(weights, column, strict=True)), 0.0) for column in zip(*rows, strict=True)]


def elect(rows: list[Vector], weights: Sequence[float]) -> Vector:
    result = []
    for column, total in zip(zip(*rows, strict=True), weighted(rows, weights), strict=True):
        agree = [(w, x) for w, x in zip(weights, column, strict=True) if w * x * total > 0]
        share = sum(abs(w) for w, _ in agree)
        result.append(sum((w * x for w, x in agree), 0.0) / share if share else 0.0)
    return result


def reference(method: str, density: float = 1.0, seed: int = 0) -> Reference:
    """The method from coordinates and weights to coordinates, for parameters of a name."""

    def run(rows: list[Vector], weights: Sequence[float], name: str) -> Vector:
        if method in TRIMMED:
            rows = [trim(row, density) for row in rows]
        if method in DRAWN:
            rows = [drop(row, density, seed, number, name) for number, row in enumerate(rows)]
        return (elect if method.endswith("ties") else weighted)(rows, weights)

    return run


def expected(run: Reference, deltas: Sequence[Delta], weights: Sequence[float]) -> dict[str, list[float]]:
    return {
        name: spread(name, run([coordinates(name, delta) for delta in deltas], weights, name))
        for name in sorted(PARAMETERS)
    }


def lists(delta: Delta) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in delta.items()}


def arguments(delta: Delta) -> Mapping[str, object]:
    lineage = delta.metadata.lineage
    assert lineage is not None
    assert lineage.record.operation == "merge"
    return lineage.record.arguments


def one(values: Sequence[float]) -> Delta:
    """A delta of one elementwise weight."""
    return Delta({NORM: np.array(values)}, replace(METADATA, parameters={NORM: parameter(len(values), seed=3)}))


def test_there_are_six_methods_and_each_says_where_it_comes_from() -> None:
    assert list(METHODS) == ["linear", "slerp", "ties", "dare_linear", "dare_ties", "magnitude"]
    assert all(method.reference for method in METHODS.values())


def test_linear_is_the_weighted_sum() -> None:
    found = merge([A, B, C], weights=WEIGHTS)
    assert lists(found) == expected(reference("linear"), [A, B, C], WEIGHTS)
    assert lists(found) == lists(add(A, B, C, weights=WEIGHTS))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("method", TRIMMED)
def test_a_trimming_method_is_its_definition(method: str, density: float) -> None:
    found = merge([A, B, C], method=method, weights=WEIGHTS, density=density)
    assert lists(found) == expected(reference(method, density), [A, B, C], WEIGHTS)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("seed", [0, 1, 2**53 - 1])
@pytest.mark.parametrize("method", DRAWN)
def test_a_drawing_method_is_its_definition(method: str, seed: int, density: float) -> None:
    found = merge([A, B, C], method=method, weights=WEIGHTS, density=density, seed=seed)
    assert lists(found) == expected(reference(method, density, seed), [A, B, C], WEIGHTS)


@pytest.mark.parametrize("method", ["linear", *DENSE])
def test_weights_are_1_unless_given(method: str) -> None:
    density = {"density": 0.5} if method in DENSE else {}
    plain = merge([A, B, C], method=method, **density)  # type: ignore[arg-type]
    assert dumps(plain) == dumps(merge([A, B, C], method=method, weights=[1, 1, 1], **density))  # type: ignore[arg-type]
    assert lists(plain) == expected(reference(method, 0.5), [A, B, C], (1, 1, 1))


@pytest.mark.parametrize("method", ["magnitude", "dare_linear"])
def test_at_density_1_a_sparse_sum_is_the_plain_one(method: str) -> None:
    found = merge([A, B, C], method=method, weights=WEIGHTS, density=1)
    assert lists(found) == lists(merge([A, B, C], weights=WEIGHTS))


def test_at_density_1_dare_with_ties_is_ties() -> None:
    a, b = (merge([A, B, C], method=method, weights=WEIGHTS, density=1) for method in ("dare_ties", "ties"))
    assert lists(a) == lists(b)


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_electing_from_one_input_or_the_same_twice_changes_nothing(method: str) -> None:
    assert lists(merge([A], method=method, density=1)) == lists(A)
    assert lists(merge([A, A], method=method, density=1)) == lists(A)


def test_ties_is_the_mean_of_those_that_agree_with_the_elected_sign() -> None:
    inputs = [one([4, -1, 3, 0, 2]), one([2, 5, -3, 0, -1]), one([-3, -2, 0, 0, -1])]
    assert merge(inputs, method="ties", density=1)[NORM].tolist() == [3, 5, 0, 0, 0]
    assert merge(inputs, method="ties", density=0.4)[NORM].tolist() == [4, 5, 0, 0, 0]


def test_a_negative_weight_turns_the_sign_that_is_elected() -> None:
    a, b = one([1, 1]), one([3, -3])
    assert merge([a, b], method="ties", density=1, weights=(1, -1))[NORM].tolist() == [-3, 2]


def test_means_are_weighted() -> None:
    found = merge([one([1, 2]), one([4, -1])], method="ties", density=1, weights=(3, 1))[NORM]
    assert found.tolist() == [7 / 4, 2]


def test_the_largest_of_equal_magnitudes_that_are_kept_are_the_first() -> None:
    assert merge([one([1, -2, 2, 2, 1])], method="magnitude", density=0.4)[NORM].tolist() == [0, -2, 2, 0, 0]


@pytest.mark.parametrize(
    ("density", "kept"), [(0.01, 1), (0.1, 1), (0.149, 1), (0.15, 2), (0.25, 3), (0.5, 5), (0.94, 9), (0.95, 10)]
)
def test_a_density_keeps_the_nearest_whole_number_and_at_least_one(density: float, kept: int) -> None:
    values = one(np.arange(1, 11).tolist())
    assert np.count_nonzero(merge([values], method="magnitude", density=density)[NORM]) == kept


def test_a_run_is_kept_or_dropped_as_one_coordinate() -> None:
    for seed in range(20):
        for method in DRAWN:
            found = merge([A, B], method=method, density=0.5, seed=seed)[QUERY]
            assert len(set(found[0:2].tolist())) == len(set(found[3:6].tolist())) == 1
            assert not found[6:].any()


def test_a_run_that_only_one_input_has_is_a_coordinate_of_all() -> None:
    item = parameter(4, 5)
    a = Delta({"unet.w": np.array([1, 2, 5, 4])}, replace(METADATA, parameters={"unet.w": item}))
    runs = replace(METADATA, parameters={"unet.w": replace(item, tied=((0, 1),), null=1)})
    b = Delta({"unet.w": np.array([8, 8, 1, 0])}, runs)
    found = merge([a, b], method="magnitude", density=0.5)  # of 2 coordinates: (1.5, 5) and (8, 1)
    assert found["unet.w"].tolist() == [8, 8, 5, 0]
    assert found.metadata.parameters == runs.parameters


@pytest.mark.parametrize("method", [*DENSE, "linear"])
def test_a_parameter_that_one_lacks_counts_as_zeros(method: str) -> None:
    density = {"density": 0.5} if method in DENSE else {}
    small = Delta({CONV: B[CONV]}, part(METADATA, CONV))
    zeros = Delta({name: B[name] * np.float32(name == CONV) for name in B}, METADATA)
    a, b = (merge([A, other], method=method, weights=(2, 3), **density) for other in (small, zeros))  # type: ignore[arg-type]
    assert lists(a) == lists(b)


@pytest.mark.parametrize("method", DRAWN)
def test_the_same_seed_draws_the_same_bytes_and_another_others(method: str) -> None:
    def run(**seed: int) -> bytes:
        return dumps(merge([A, B], method=method, density=0.5, **seed))  # type: ignore[arg-type]

    assert run(seed=7) == run(seed=7)
    assert run() == run(seed=0)
    assert len({tuple(map(tuple, lists(merge([A, B], method=method, density=0.5, seed=seed)).values()))
                for seed in range(8)}) == 8  # fmt: skip


def test_inputs_and_parameters_are_drawn_apart() -> None:
    size = 64
    items = {name: parameter(size, seed=number) for number, name in enumerate(("unet.a.weight", "unet.b.weight"))}
    ones = Delta({name: np.ones(size) for name in items}, replace(METADATA, parameters=items))
    first = merge([ones, ones], method="dare_linear", density=0.5, weights=(1, 0))
    second = merge([ones, ones], method="dare_linear", density=0.5, weights=(0, 1))
    assert len({tuple(value.tolist()) for merged in (first, second) for value in merged.values()}) == 4


def test_what_is_drawn_for_a_parameter_does_not_depend_on_the_others() -> None:
    alone = Delta({TEXT: A[TEXT]}, part(METADATA, TEXT))
    found = merge([alone], method="dare_linear", density=0.5, seed=3)[TEXT]
    assert np.array_equal(found, merge([A], method="dare_linear", density=0.5, seed=3)[TEXT])


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_share_and_the_expectation(density: float) -> None:
    found = merge([one([1.0] * 20_000)], method="dare_linear", density=density)[NORM]
    assert set(found.tolist()) == {0.0, float(np.float32(1 / density))}
    slack = 5 * sqrt(density * (1 - density) / 20_000)
    assert abs(np.count_nonzero(found) / 20_000 - density) < slack
    assert abs(found.mean() - 1) < slack / density


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_draws_are_the_same_in_every_process(tmp_path: Path, hash_seed: str) -> None:
    saved(A, tmp_path / "a")
    saved(B, tmp_path / "b")
    code = (
        "from svdiff_delta import load, merge, save\n"
        "weights = [{'unet': 2, 'mid': 3}, 1]\n"
        "save(merge([load('a'), load('b')], method='dare_ties', density=0.5, seed=7, weights=weights), 'out')"
    )
    outcome = python(code, folder=tmp_path, PYTHONHASHSEED=hash_seed)
    assert outcome.code == 0, outcome.err
    here = merge([A, B], method="dare_ties", density=0.5, seed=7, weights=[{"unet": 2, "mid": 3}, 1])
    assert (tmp_path / "out").read_bytes() == dumps(here)


def on_the_arc(a: Vector, b: Vector, alpha: float) -> Vector:
    """α of the way from b to a along the great circle (Shoemake), from the plane that a and b span."""
    dot, lengths = (sum(x * y for x, y in zip(a, b, strict=True)), [sqrt(sum(x * x for x in v)) for v in (a, b)])
    unit = [x / lengths[0] for x in a]
    across = [y / lengths[1] - dot / (lengths[0] * lengths[1]) * x for x, y in zip(unit, b, strict=True)]
    angle = atan2(sqrt(sum(x * x for x in across)), dot / (lengths[0] * lengths[1]))
    shares = sin(alpha * angle) / sin(angle), sin((1 - alpha) * angle) / sin(angle)
    return [shares[0] * x + shares[1] * y for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_slerp_is_its_definition_on_each_whole_shift(alpha: float) -> None:
    found = merge([A, B], method="slerp", alpha=alpha)
    for name in PARAMETERS:
        whole = on_the_arc([float(x) for x in A[name]], [float(x) for x in B[name]], alpha)
        assert found[name].tolist() == pytest.approx(whole, rel=1e-6, abs=1e-12)


def test_slerp_goes_along_the_circle_at_even_pace() -> None:
    for step in range(11):
        alpha = step / 10
        found = merge([one([2, 0]), one([0, 2])], method="slerp", alpha=alpha)[NORM]
        quarter = np.pi / 2 * (1 - alpha)
        assert found.tolist() == pytest.approx([2 * cos(quarter), 2 * sin(quarter)], abs=1e-7)


@pytest.mark.parametrize(
    "other",
    [[0.0, 0, 0], [3.0, 6, 9], [-1.0, -2, -3], [1 + 1e-7, 2, 3]],
    ids=["zero", "along", "against", "nearly along"],
)
def test_slerp_without_an_angle_is_a_straight_line(other: list[float]) -> None:
    a, b = one([1, 2, 3]), one(other)
    assert np.array_equal(merge([a, b], method="slerp", alpha=0.3)[NORM], interpolate(a, b, 0.3)[NORM])


def test_slerp_counts_a_run_as_often_as_it_is_long() -> None:
    item = replace(parameter(3, 4), tied=((0, 1),))
    metadata = replace(METADATA, parameters={"unet.w": item})
    a, b = (Delta({"unet.w": np.array(values)}, metadata) for values in ([1.0, 1, 0], [1.0, 1, 2]))
    found = merge([a, b], method="slerp", alpha=0.5)["unet.w"].tolist()
    assert found == pytest.approx(on_the_arc([1, 1, 0], [1, 1, 2], 0.5), rel=1e-6)
    assert found[0] != pytest.approx(on_the_arc([1, 0], [1, 2], 0.5)[0], rel=1e-2)


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


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_takes_two(count: int) -> None:
    with pytest.raises(InputError, match=f"^slerp takes 2 deltas, {count} were given$"):
        merge([A, B, C][:count], method="slerp", alpha=0.5)


def test_slerp_takes_no_weights() -> None:
    with pytest.raises(InputError, match=r"^slerp takes no weights: use alpha$"):
        merge([A, B], method="slerp", alpha=0.5, weights=(1, 1))


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
        merge([one([7, 0])], weights=[1e4], dtype="F16")


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_as_they_were(method: str) -> None:
    before = dumps(A), dumps(B)
    merge([A, B], method=method, **{key: 0.5 for key in NEEDS[method] if key != "seed"})  # type: ignore[arg-type]
    assert (dumps(A), dumps(B)) == before
