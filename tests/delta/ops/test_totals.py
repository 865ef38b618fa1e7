"""Sums of many deltas: exact, rounded once, projected on the runs of all, one input at a time (spec, section 7.3)."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from math import fsum
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.deltas import CONV, METADATA, NORM, PARAMETERS, QUERY, TEXT, fingerprint, parameter, part, random_values

from svdiff_delta import add, load, save
from svdiff_delta.errors import BaseMismatchError, SelectionError, TensorError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.ops.arithmetic import add_all
from svdiff_delta.ops.totals import Totals, weighted_total
from svdiff_delta.ops.weights import Weight

PLAIN = replace(
    METADATA, parameters={name: replace(item, tied=(), null=0) for name, item in sorted(PARAMETERS.items())}
)
ODD = 3 * 2.0**-7
"""A factor with few bits, so that a product with a float32 is exact in float64."""


def nearest_float32(exact: Fraction) -> np.float32:
    """The float32 that is nearest to an exact number, of two as near the one whose last bit is 0."""
    guess = np.float32(float(exact))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.uint32)) & 1))


def exact_sums(deltas: Sequence[Delta], factors: Sequence[float], name: str) -> list[Fraction]:
    """Σ w·δ without any rounding."""
    rows = [[Fraction(factor) * Fraction(float(x)) for x in delta[name]]
            for delta, factor in zip(deltas, factors, strict=True)]  # fmt: skip
    return [sum(column, Fraction(0)) for column in zip(*rows, strict=True)]


def dyadic(seed: int) -> Delta:
    """A delta whose sums are exact in float64: float32 numbers of nearly the same size, of either sign."""
    draw = np.random.default_rng(seed)
    values = {
        name: draw.uniform(0.5, 2, p.size).astype(np.float32) * draw.choice([-1, 1], p.size)
        for name, p in PLAIN.parameters.items()
    }
    return Delta(values, PLAIN)


def tensors(delta: Delta) -> dict[str, bytes]:
    return {name: bytes(stored.data) for name, stored in delta.stored.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 17, 40])
def test_a_sum_of_many_is_the_exact_sum_rounded_once(count: int) -> None:
    deltas, factors = [dyadic(seed) for seed in range(count)], [ODD * (seed - 5) for seed in range(count)]
    total = add(*deltas, weights=factors)
    for name in PLAIN.parameters:
        expected = [nearest_float32(exact) for exact in exact_sums(deltas, factors, name)]
        assert total[name].tolist() == [float(value) for value in expected]


def test_a_sum_of_many_with_any_factors_is_within_the_stated_rounding_of_the_exact_one() -> None:
    draw = np.random.default_rng(0)
    deltas, factors = [dyadic(seed) for seed in range(30)], draw.uniform(-10, 10, 30).tolist()
    total = add(*deltas, weights=factors)
    for name in PLAIN.parameters:
        size = [fsum(abs(factor * float(d[name][i])) for d, factor in zip(deltas, factors, strict=True))
                for i in range(PLAIN.parameters[name].size)]  # fmt: skip
        for found, exact, whole in zip(total[name], exact_sums(deltas, factors, name), size, strict=True):
            bound = abs(float(exact)) * 2.0**-24 * (1 + 2.0**-20) + 31 * 2.0**-52 * whole
            assert abs(Fraction(float(found)) - exact) <= bound


def test_where_float64_is_exact_every_order_gives_the_same_bytes() -> None:
    pairs = [(dyadic(seed), ODD * (seed + 1)) for seed in range(4)]
    found = {
        tuple(sorted(tensors(add(*(d for d, _ in order), weights=[w for _, w in order])).items()))
        for order in permutations(pairs)
    }
    assert len(found) == 1


def test_two_inputs_commute_in_bytes_whatever_their_factors() -> None:
    a, b = Delta(random_values(PARAMETERS, 1), METADATA), Delta(random_values(PARAMETERS, 2), METADATA)
    assert tensors(add(a, b, weights=(0.1, -0.7))) == tensors(add(b, a, weights=(-0.7, 0.1)))


def test_a_sum_is_not_rounded_in_between() -> None:
    one, tiny = ({NORM: np.full(5, value)} for value in (1.0, 2.0**-25))
    ones, tinies = Delta(one, part(PLAIN, NORM)), Delta(tiny, part(PLAIN, NORM))
    assert add(ones, tinies, tinies, tinies)[NORM][0] == 1 + 2.0**-23  # 3/4 of a unit in the last place
    assert add(add(add(ones, tinies), tinies), tinies)[NORM][0] == 1


def test_deltas_from_files_and_from_memory_give_the_same_sum(tmp_path: Path) -> None:
    deltas, weights = [dyadic(seed) for seed in range(5)], [0.3, -1.7, 0.0, 1e-3, 2.0]
    for number, delta in enumerate(deltas):
        save(delta, tmp_path / str(number))
    files = [load(tmp_path / str(number)) for number in range(5)]
    assert all(delta.flat() is not None for delta in files)
    assert all(delta.flat() is None for delta in deltas)
    assert dumps(add(*files, weights=weights)) == dumps(add(*deltas, weights=weights))


def test_inputs_of_different_number_formats_and_parameters_are_summed_by_name() -> None:
    a = loads(dumps(dyadic(1), dtype="I8"))
    b = loads(dumps(Delta({n: dyadic(2)[n] for n in (CONV, TEXT)}, part(PLAIN, CONV, TEXT)), dtype="BF16"))
    c = loads(dumps(Delta({n: dyadic(3)[n] for n in (NORM, TEXT)}, part(PLAIN, NORM, TEXT))))
    for order in permutations([(a, 2.0), (b, -3.0), (c, 0.5)]):
        total = add(*(d for d, _ in order), weights=[w for _, w in order])
        for name in PLAIN.parameters:
            expected = sum(w * d[name].astype(np.float64) for d, w in order if name in d)
            assert np.array_equal(total[name], np.asarray(expected).astype(np.float32))


def with_runs(values: Sequence[float], tied: Sequence[tuple[int, int]], null: int) -> Delta:
    item = replace(parameter(6, 8), tied=tuple(tied), null=null)
    return Delta({"unet.w": np.array(values)}, replace(METADATA, parameters={"unet.w": item}))


def test_a_total_is_projected_on_runs_that_come_later() -> None:
    first = with_runs([1, 2, 4, 8, 16, 32], [], 0)
    second = with_runs([1, 1, 1, 1, 0, 0], [(0, 1), (2, 3)], 2)
    assert add(first, second)["unet.w"].tolist() == [2.5, 2.5, 7, 7, 0, 0]
    assert add(second, first, weights=(1, 2))["unet.w"].tolist() == [4, 4, 13, 13, 0, 0]


def test_the_mean_of_a_run_is_its_exact_sum_divided_once() -> None:
    values = [2.0**60, 1.0, -(2.0**60), 1.0, 0.0, 0.0]
    runs = with_runs([0] * 6, [(0, 3)], 0)
    assert add(with_runs(values, [], 0), runs)["unet.w"].tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize("weights", [[1e300, 1e300], [1e300, -1e300], [1e300, 1.0]])
def test_a_tied_run_beyond_float64_is_refused_by_name(weights: list[float]) -> None:
    tied = replace(METADATA, parameters={"unet.w": replace(parameter(3, 4), tied=((0, 2),))})
    large = Delta({"unet.w": [3e38] * 3}, tied)
    plain = replace(METADATA, parameters={"unet.w": parameter(3, 4)})
    other = Delta({"unet.w": [3e38, -3e38, 1.0]}, plain)
    with pytest.raises(TensorError, match=r"^unet\.w: δ reaches"):
        add(large, other, weights=weights)


def test_a_total_of_one_parameter_is_that_of_the_whole() -> None:
    deltas, factors = [dyadic(seed) for seed in range(4)], [0.1, -0.7, 1.3, 0.0]
    total = add(*deltas, weights=factors)
    for name, item in PLAIN.parameters.items():
        found = weighted_total(name, item, deltas, factors)
        assert found.dtype == np.float64
        assert np.array_equal(found.astype(np.float32), total[name])


def test_a_total_of_a_parameter_that_no_delta_has_is_zeros() -> None:
    assert weighted_total("unet.other", parameter(3, 4), [dyadic(1)], [2.0]).tolist() == [0, 0, 0]


def test_totals_keep_what_was_summed_when_parameters_come_in_between() -> None:
    def of(name: str, value: float) -> Delta:
        return Delta({name: np.full(PLAIN.parameters[name].size, value)}, part(PLAIN, name))

    totals = Totals({})
    for name, value in ((QUERY, 1.0), (CONV, 2.0), (TEXT, 4.0), (NORM, 8.0), (CONV, 16.0)):
        totals.add(of(name, value), Weight(0.5))
    assert list(totals.parameters) == [TEXT, CONV, NORM, QUERY]
    assert {name: set(totals[name].tolist()) for name in totals.parameters} == {
        TEXT: {2.0}, CONV: {9.0}, NORM: {4.0}, QUERY: {0.5},
    }  # fmt: skip


def damaged(value: float) -> Delta:
    """A delta from a file that holds this number at the end."""
    raw = dumps(dyadic(1))
    return loads(raw[:-4] + np.float32(value).tobytes(), name="bad")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_in_a_file_that_is_not_finite_is_refused_by_names_among_many(value: float) -> None:
    with pytest.raises(TensorError, match=f"^bad: {QUERY}: δ holds NaN or infinity"):
        add(dyadic(2), damaged(value), dyadic(3), weights=(1, 0, 1))


def test_a_disagreement_with_an_earlier_input_is_refused_by_the_name_of_a_parameter() -> None:
    items = {name: replace(item, fingerprint=fingerprint(99)) if name == NORM else item
             for name, item in PLAIN.parameters.items()}  # fmt: skip
    other = Delta(dict(dyadic(3)), Metadata(PLAIN.base, items))
    with pytest.raises(BaseMismatchError, match=f"^{NORM}: the inputs were made for different bases"):
        add(dyadic(1), dyadic(2), other)


def test_a_selector_that_an_input_does_not_know_is_refused() -> None:
    with pytest.raises(SelectionError, match="'up'"):
        add(dyadic(1), dyadic(2), weights=[1, {"up": 1}])


WIDE: Mapping[str, NDArray[np.float32]] = {"unet.w": np.arange(2000, dtype=np.float32)}
WIDE_METADATA = replace(METADATA, parameters={"unet.w": parameter(2000)})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("many")
    paths = [folder / f"{number}.safetensors" for number in range(200)]
    for number, path in enumerate(paths):
        path.write_bytes(dumps(Delta({"unet.w": WIDE["unet.w"] + np.float32(number)}, WIDE_METADATA)))
    return paths


def test_the_sum_of_many_files_takes_far_less_memory_than_the_files(many: list[Path]) -> None:
    def opened() -> Iterator[tuple[Delta, Weight]]:
        for path in many:
            yield loads(path.read_bytes()), Weight(0.5)  # read, not mapped, so that its bytes are counted

    gc.collect()
    tracemalloc.start()
    try:
        total = add_all(opened())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < sum(path.stat().st_size for path in many) / 2
    assert np.array_equal(total["unet.w"], (100 * WIDE["unet.w"].astype("f8") + 0.5 * 199 * 100).astype("f4"))


def test_no_input_is_kept_when_the_sum_is_done(many: list[Path]) -> None:
    seen: list[weakref.ref[Delta]] = []

    def opened() -> Iterator[tuple[Delta, Weight]]:
        for path in many[:20]:
            delta = load(path)
            seen.append(weakref.ref(delta))
            yield delta, Weight()

    total = add_all(opened())
    gc.collect()
    assert len(seen) == 20
    assert not any(reference() for reference in seen)
    lineage = total.metadata.lineage
    assert lineage is not None
    assert len(lineage.record.inputs) == 20


def test_values_of_another_length_are_refused_by_name_even_where_all_lengths_together_fit() -> None:
    whole = Delta({name: np.zeros(item.size) for name, item in PLAIN.parameters.items()}, PLAIN)
    longer, shorter = [name for name in PLAIN.parameters if PLAIN.parameters[name].size > 1][:2]
    stored = dict(whole.stored)
    data = {name: bytes(stored[name].data) for name in (longer, shorter)}
    stored[longer] = stored[longer]._replace(data=data[longer] + data[shorter][:4])
    stored[shorter] = stored[shorter]._replace(data=data[shorter][4:])
    totals = Totals(PLAIN.parameters)
    with pytest.raises(TensorError, match=f"^{longer}: δ has shape"):
        totals.add(Delta.from_stored(stored, PLAIN), Weight())


def test_weights_by_selector_give_the_same_bits_at_once_and_one_by_one() -> None:
    delta = Delta(random_values(PLAIN.parameters, 1), PLAIN)
    weight = Weight(0.3, {"unet": -1.7, CONV: 0.1})
    at_once, by_name = Totals({}), Totals({})
    at_once.add(delta, weight)
    for name, factor in weight.by_name(PLAIN).items():
        by_name.add_by_name(delta, {name: factor})
    assert all((at_once[name] == by_name[name]).all() and at_once[name].any() for name in PLAIN.parameters)
