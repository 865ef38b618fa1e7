"""Merge methods, each against plain Python written from its definition (spec, section 7.6, and the papers it cites)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor, sqrt
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
    norm_delta,
    parameter,
    part,
    random_delta,
    saved,
)

from svdiff_delta import Delta, add, merge
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge import METHODS

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
    inputs = [norm_delta([4, -1, 3, 0, 2]), norm_delta([2, 5, -3, 0, -1]), norm_delta([-3, -2, 0, 0, -1])]
    assert merge(inputs, method="ties", density=1)[NORM].tolist() == [3, 5, 0, 0, 0]
    assert merge(inputs, method="ties", density=0.4)[NORM].tolist() == [4, 5, 0, 0, 0]


def test_a_negative_weight_turns_the_sign_that_is_elected() -> None:
    a, b = norm_delta([1, 1]), norm_delta([3, -3])
    assert merge([a, b], method="ties", density=1, weights=(1, -1))[NORM].tolist() == [-3, 2]


def test_means_are_weighted() -> None:
    found = merge([norm_delta([1, 2]), norm_delta([4, -1])], method="ties", density=1, weights=(3, 1))[NORM]
    assert found.tolist() == [7 / 4, 2]


def test_the_largest_of_equal_magnitudes_that_are_kept_are_the_first() -> None:
    assert merge([norm_delta([1, -2, 2, 2, 1])], method="magnitude", density=0.4)[NORM].tolist() == [0, -2, 2, 0, 0]


@pytest.mark.parametrize(
    ("density", "kept"), [(0.01, 1), (0.1, 1), (0.149, 1), (0.15, 2), (0.25, 3), (0.5, 5), (0.94, 9), (0.95, 10)]
)
def test_a_density_keeps_the_nearest_whole_number_and_at_least_one(density: float, kept: int) -> None:
    values = norm_delta(np.arange(1, 11).tolist())
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
    found = merge([norm_delta([1.0] * 20_000)], method="dare_linear", density=density)[NORM]
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
