"""Laws of the arithmetic, on random deltas that share some parameters and differ in tied and null runs.

Sums are float64 and rounded once to F32, so a result errs by at most 2⁻²⁴ of its size (2⁻¹⁵⁰ where it is subnormal).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from support.deltas import METADATA, allowed, parameter
from support.laws import law

from svdiff_delta import add, interpolate, scale, select
from svdiff_delta.format.delta import Delta, project
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.totals import Totals
from svdiff_delta.ops.weights import Weight

SHAPES = {
    "unet.a.weight": (6, 9),
    "unet.b.weight": (4,),
    "unet.c.weight": (3, 2, 2, 2),
    "text_encoder.d.weight": (1, 5),
}
finite = st.floats(-1e6, 1e6, width=32)
factors = st.floats(-100, 100)


@st.composite
def runs(draw: st.DrawFn, weight: Parameter) -> Parameter:
    """The weight with random tied runs and a random null count."""
    if weight.kind == "elementwise":
        return weight
    null = draw(st.integers(0, weight.size))
    cuts = sorted(draw(st.sets(st.integers(0, weight.size - null))))
    spans = [(first, last - 1) for first, last in pairwise(cuts) if last - first > 1]
    return replace(weight, tied=tuple(spans), null=null)


@st.composite
def deltas(draw: st.DrawFn, *, plain: bool = False, whole: bool = False) -> Delta:
    """A delta of some of four weights; `plain` without tied and null runs, `whole` of all four."""
    names = list(SHAPES) if whole else draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True))
    weights = {name: parameter(*SHAPES[name], seed=list(SHAPES).index(name)) for name in names}
    parameters = weights if plain else {name: draw(runs(weight)) for name, weight in weights.items()}
    values = {name: allowed(p, draw(hnp.arrays(np.float32, p.size, elements=finite))) for name, p in parameters.items()}
    return Delta(values, replace(METADATA, parameters=parameters))


plain = deltas(plain=True)
whole = deltas(plain=True, whole=True)


def value(delta: Delta, name: str) -> NDArray[np.float64]:
    """δ in float64; zeros where there is none."""
    return delta[name].astype(np.float64) if name in delta else np.zeros(parameter(*SHAPES[name]).size)


def same(a: Delta, b: Delta) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def rounding(*sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far results of these sizes may be off when each was rounded to F32."""
    return sum(np.abs(size) * 2.0**-24 + 2.0**-150 for size in sizes)


def runs_hold(delta: Delta) -> bool:
    """Whether tied values are equal and null shifts zero."""
    return all(
        np.array_equal(delta[name], allowed(parameter, delta[name]))
        for name, parameter in delta.metadata.parameters.items()
    )


@law
@given(deltas(), deltas(), factors, factors)
def test_addition_commutes(a: Delta, b: Delta, x: float, y: float) -> None:
    assert same(add(a, b, weights=(x, y)), add(b, a, weights=(y, x)))


@law
@given(plain, plain, plain)
def test_addition_associates_but_for_the_rounding_in_between(a: Delta, b: Delta, c: Delta) -> None:
    left, right = add(add(a, b), c), add(a, add(b, c))
    assert left.keys() == right.keys()
    for name in left:
        x, y, z = (value(delta, name) for delta in (a, b, c))
        bound = rounding(x + y, y + z, 2 * (np.abs(x) + np.abs(y) + np.abs(z)))
        assert (np.abs(value(left, name) - value(right, name)) <= bound).all()


@law
@given(plain, plain, plain, st.tuples(factors, factors, factors))
def test_a_sum_of_three_is_rounded_once(a: Delta, b: Delta, c: Delta, weights: tuple[float, float, float]) -> None:
    total = add(a, b, c, weights=weights)
    for name in total:
        exact = sum(weight * value(delta, name) for weight, delta in zip(weights, (a, b, c), strict=True))
        assert np.array_equal(total[name], exact.astype(np.float32))


@law
@given(whole, whole)
def test_interpolation_at_1_is_the_first(a: Delta, b: Delta) -> None:
    assert same(interpolate(a, b, 1), a)


@law
@given(whole, whole)
def test_interpolation_at_0_is_the_second(a: Delta, b: Delta) -> None:
    assert same(interpolate(a, b, 0), b)


@law
@given(deltas(), deltas(), st.floats(0, 1))
def test_interpolation_is_a_weighted_sum(a: Delta, b: Delta, alpha: float) -> None:
    assert same(interpolate(a, b, alpha), add(a, b, weights=(alpha, 1 - alpha)))


@law
@given(plain, plain, st.floats(0, 1))
def test_interpolation_stays_between_its_ends(a: Delta, b: Delta, alpha: float) -> None:
    between = interpolate(a, b, alpha)
    for name in between:
        low, high = np.minimum(value(a, name), value(b, name)), np.maximum(value(a, name), value(b, name))
        slack = rounding(low, high)
        assert (value(between, name) >= low - slack).all()
        assert (value(between, name) <= high + slack).all()


@law
@given(deltas())
def test_scaling_by_1_changes_nothing(a: Delta) -> None:
    assert same(scale(a, 1), a)


@law
@given(deltas())
def test_adding_the_opposite_gives_zero(a: Delta) -> None:
    assert not any(value.any() for value in add(a, scale(a, -1)).values())


@law
@given(deltas(), deltas(), st.integers(-8, 8), st.integers(-8, 8))
def test_weights_fold_in_exactly_where_they_are_powers_of_two(a: Delta, b: Delta, x: int, y: int) -> None:
    normal = Delta({name: np.where(np.abs(v) < 1e-30, 0, v) for name, v in a.items()}, a.metadata)
    other = Delta({name: np.where(np.abs(v) < 1e-30, 0, v) for name, v in b.items()}, b.metadata)
    folded = add(scale(normal, 2.0**x), scale(other, 2.0**y))
    assert same(add(normal, other, weights=(2.0**x, 2.0**y)), folded)


@law
@given(plain, plain, factors, factors)
def test_any_weights_fold_in_but_for_the_rounding_in_between(a: Delta, b: Delta, x: float, y: float) -> None:
    at_once, folded = add(a, b, weights=(x, y)), add(scale(a, x), scale(b, y))
    for name in at_once:
        u, v = x * value(a, name), y * value(b, name)
        bound = rounding(u, v, 2 * (np.abs(u) + np.abs(v)))
        assert (np.abs(value(at_once, name) - value(folded, name)) <= bound).all()


@law
@given(deltas(whole=True), st.sets(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=3))
def test_a_slice_and_its_complement_add_up(a: Delta, names: set[str]) -> None:
    part, rest = select(a, *sorted(names)), select(a, *sorted(a.keys() - names))
    assert same(add(part, rest), a)
    assert not part.keys() & rest.keys()


@law
@given(deltas(), deltas(), factors, st.floats(0, 1))
def test_tied_runs_are_equal_and_null_shifts_zero_after_every_operation(
    a: Delta, b: Delta, factor: float, alpha: float
) -> None:
    assert runs_hold(add(a, b, weights=(factor, 1)))
    assert runs_hold(add(a, b, a))
    assert runs_hold(interpolate(a, b, alpha))
    assert runs_hold(scale(a, factor))
    assert runs_hold(scale(a, factor, dtype="BF16"))
    assert runs_hold(select(a, next(iter(a))))


@law
@given(deltas(), deltas())
def test_the_runs_of_a_sum_cover_those_of_its_inputs(a: Delta, b: Delta) -> None:
    total = add(a, b).metadata.parameters
    for delta in (a, b):
        for name, given_ in delta.metadata.parameters.items():
            found = total[name]
            assert found.null >= given_.null
            for first, last in given_.tied:
                null = last >= found.size - found.null and first >= found.size - found.null
                assert null or any(start <= first and last <= stop for start, stop in found.tied)


@law
@given(deltas(), deltas(), factors)
def test_a_result_is_written_and_read_back_as_it_is(a: Delta, b: Delta, factor: float) -> None:
    result = add(a, b, weights=(factor, -factor))
    read = loads(dumps(result))
    assert same(read, result)
    assert read.metadata == result.metadata


@law
@given(deltas())
def test_a_sum_of_one_is_that_one(a: Delta) -> None:
    assert same(add(a), a)


@law
@given(deltas())
def test_scaling_by_1_keeps_the_bytes_of_every_tensor(a: Delta) -> None:
    assert {name: stored.data for name, stored in scale(a, 1).stored.items()} == {
        name: stored.data for name, stored in a.stored.items()
    }


@law
@given(deltas(), factors)
def test_scaling_is_a_sum_of_one_with_a_weight(a: Delta, factor: float) -> None:
    assert same(scale(a, factor), add(a, weights=[factor]))


@law
@given(deltas())
def test_nothing_is_left_of_0_times_a_delta_or_of_it_less_itself(a: Delta) -> None:
    zeros = {name: bytes(4 * value.size) for name, value in a.items()}
    for found in (scale(a, 0), scale(a, -0.0), add(a, a, weights=(1, -1))):
        assert {name: bytes(stored.data) for name, stored in found.stored.items()} == zeros


@law
@given(deltas(), st.integers(-60, 60))
def test_scaling_by_a_power_of_two_and_back_gives_the_delta(a: Delta, power: int) -> None:
    normal = Delta({name: np.where(np.abs(v) < 1e-18, 0, v) for name, v in a.items()}, a.metadata)
    assert same(scale(scale(normal, 2.0**power), 2.0**-power), normal)


@law
@given(deltas(plain=True), whole)
def test_interpolation_at_its_ends_has_what_the_other_has_more_as_zeros(a: Delta, b: Delta) -> None:
    for found in (interpolate(a, b, 1), interpolate(b, a, 0)):
        assert found.keys() == b.keys()
        assert all(np.array_equal(value(found, name), value(a, name)) for name in b)


@law
@given(deltas(whole=True), st.sets(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=3))
def test_a_slice_and_what_an_exclamation_mark_leaves_add_up(a: Delta, names: set[str]) -> None:
    part, rest = select(a, *names), select(a, *(f"!{name}" for name in names))
    assert part.keys() | rest.keys() == a.keys()
    assert same(add(part, rest), a)
    assert same(add(rest, part), a)


@law
@given(deltas(whole=True), deltas(whole=True), st.sets(st.sampled_from(sorted(SHAPES)), min_size=1), factors, factors)
def test_slicing_and_adding_commute(a: Delta, b: Delta, names: set[str], x: float, y: float) -> None:
    sliced = add(select(a, *names), select(b, *names), weights=(x, y))
    assert same(sliced, select(add(a, b, weights=(x, y)), *names))


@law
@given(deltas(), deltas(), st.floats(-1e6, 1e6))
def test_projecting_what_is_projected_changes_nothing(a: Delta, b: Delta, factor: float) -> None:
    for name, item in add(a, b).metadata.parameters.items():
        once = project(item, factor * value(a, name) + value(b, name))
        assert np.array_equal(project(item, once), once)


@law
@given(whole, whole, whole)
def test_regrouping_stays_within_the_bound_that_is_stated(a: Delta, b: Delta, c: Delta) -> None:
    grouped, at_once = add(add(a, b), c), add(a, b, c)
    for name in a:
        x, y, z = (value(delta, name) for delta in (a, b, c))
        bound = 2.0**-23 * (np.abs(x + y) + np.abs(x + y + z))
        assert (np.abs(value(grouped, name) - value(at_once, name)) <= bound + 2.0**-149).all()


@law
@given(st.lists(st.tuples(whole, factors), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_many_changes_the_sum_by_no_more_than_is_stated(
    terms: list[tuple[Delta, float]], random: Random
) -> None:
    shuffled = random.sample(terms, len(terms))
    totals = [Totals({}), Totals({})]
    for total, order in zip(totals, (terms, shuffled), strict=True):
        for delta, factor in order:
            total.add(delta, Weight(factor))
    for name in SHAPES:
        sizes = sum(np.abs(factor * value(delta, name)) for delta, factor in terms)
        bound = len(terms) * 2.0**-52 * np.asarray(sizes)
        assert (np.abs(totals[0][name] - totals[1][name]) <= bound).all()
