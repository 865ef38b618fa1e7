"""Truncation by rank and by energy, against a numpy formula of its own (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.deltas import CONV, METADATA, NORM, PARAMETERS, QUERY, TEXT, parameter, random_delta

from svdiff_delta import Delta, truncate
from svdiff_delta.errors import InputError
from svdiff_delta.format.dtypes import StoredDtype

SIZE = 24


def spectrum(
    values: Sequence[float] | NDArray[np.floating], tied: Sequence[tuple[int, int]] = (), null: int = 0
) -> Delta:
    """A delta of one spectral weight with these shifts and runs."""
    size = len(values)
    item = replace(parameter(size, size + 1), tied=tuple(tied), null=null)
    return Delta({"unet.w": np.array(values)}, replace(METADATA, parameters={"unet.w": item}))


def drawn(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def shifts(delta: Delta) -> list[float]:
    return [float(value) for value in delta["unet.w"]]


@pytest.mark.parametrize("rank", [1, 2, 7, SIZE - 1, SIZE, SIZE + 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_rank_keeps_the_largest_shifts_of_either_sign(rank: int, seed: int) -> None:
    values = drawn(seed)
    threshold = np.sort(np.abs(values))[-min(rank, SIZE)]
    assert shifts(truncate(spectrum(values), rank=rank)) == np.where(np.abs(values) >= threshold, values, 0).tolist()


@pytest.mark.parametrize("energy", [0.001, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_energy_keeps_the_fewest_largest_shifts_that_have_it(energy: float, seed: int) -> None:
    values = drawn(seed).astype(np.float64)
    squares = np.sort(values**2)[::-1]
    count = int(np.searchsorted(np.cumsum(squares) / squares.sum(), energy)) + 1
    kept = shifts(truncate(spectrum(values), energy=energy))
    assert kept == np.where(values**2 >= squares[count - 1], values, 0).tolist()
    assert np.count_nonzero(kept) == count


def test_all_the_energy_is_all_shifts() -> None:
    values = drawn(3)
    assert shifts(truncate(spectrum(values), energy=1)) == values.tolist()


def test_of_equal_shifts_the_first_ones_stay() -> None:
    assert shifts(truncate(spectrum([1, -2, 2, 2, 1]), rank=2)) == [0, -2, 2, 0, 0]
    assert shifts(truncate(spectrum([1, 1, -1, 1]), energy=0.5)) == [1, 1, 0, 0]


def test_a_run_that_does_not_fit_is_skipped_for_smaller_ones_that_do() -> None:
    delta = spectrum([1, 5, 5, 5, 3, 3, 2], tied=[(1, 3), (4, 5)])
    assert shifts(truncate(delta, rank=1)) == [0, 0, 0, 0, 0, 0, 2]
    assert shifts(truncate(delta, rank=2)) == [0, 0, 0, 0, 3, 3, 0]
    assert shifts(truncate(delta, rank=3)) == [0, 5, 5, 5, 0, 0, 0]
    assert shifts(truncate(delta, rank=4)) == [0, 5, 5, 5, 0, 0, 2]
    assert shifts(truncate(delta, rank=6)) == [0, 5, 5, 5, 3, 3, 2]


def test_a_run_counts_with_all_its_energy() -> None:
    delta = spectrum([3, 2, 2, 2], tied=[(1, 3)])  # 9 and 12 of 21
    assert shifts(truncate(delta, energy=9 / 21)) == [3, 0, 0, 0]
    assert shifts(truncate(delta, energy=0.5)) == [3, 2, 2, 2]


def test_null_shifts_stay_zero_and_take_no_rank() -> None:
    assert shifts(truncate(spectrum([1, 2, 3, 0, 0], null=2), rank=3)) == [1, 2, 3, 0, 0]


def test_a_delta_of_zeros_stays_one() -> None:
    assert shifts(truncate(spectrum([0, 0, 0]), energy=0.5)) == [0, 0, 0]
    assert shifts(truncate(spectrum([0, 0], null=2), rank=1)) == [0, 0]


def test_elementwise_parameters_stay_as_they_are() -> None:
    whole = random_delta(1)
    kept = truncate(whole, rank=1)
    assert np.array_equal(kept[NORM], whole[NORM])
    assert {name: np.count_nonzero(kept[name]) for name in (CONV, QUERY, TEXT)} == {CONV: 1, QUERY: 1, TEXT: 1}


@pytest.mark.parametrize(("dtype", "expected"), [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("I8", "F32")])
def test_number_formats_stay_but_i8_of_what_is_cut_becomes_f32(dtype: StoredDtype, expected: StoredDtype) -> None:
    whole = random_delta(1, dtypes=dict.fromkeys(PARAMETERS, dtype))
    kept = truncate(whole, rank=2)
    assert {name: kept.dtype_of(name) for name in PARAMETERS} == dict.fromkeys(PARAMETERS, expected) | {NORM: dtype}
    assert all(np.isin(kept[name], [0, *whole[name]]).all() for name in PARAMETERS)


def test_what_was_kept_is_kept_again() -> None:
    once = truncate(random_delta(1), rank=3)
    again = truncate(once, rank=3)
    assert all(np.array_equal(again[name], once[name]) for name in once)


@pytest.mark.parametrize("arguments", [{"rank": 3}, {"energy": 0.5}])
def test_the_argument_is_recorded(arguments: dict[str, float]) -> None:
    lineage = truncate(random_delta(1), **arguments).metadata.lineage  # type: ignore[arg-type]
    assert lineage is not None
    assert (lineage.record.operation, lineage.record.arguments) == ("truncate", arguments)


def test_either_a_rank_or_an_energy_must_be_given() -> None:
    for rank, energy in ((None, None), (1, 0.5)):
        with pytest.raises(InputError, match=r"^truncate takes either a rank or an energy: give one of them$"):
            truncate(random_delta(1), rank=rank, energy=energy)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_refused_as_it_was_given(rank: int) -> None:
    with pytest.raises(InputError, match=f"^the rank must be at least 1, is {rank}$"):
        truncate(random_delta(1), rank=rank)


@pytest.mark.parametrize("energy", [0.0, -0.5, 1.0001, float("nan"), float("inf")])
def test_an_energy_outside_0_to_1_is_refused_as_it_was_given(energy: float) -> None:
    with pytest.raises(InputError, match=rf"^the energy must be within \(0, 1\], is {energy}$"):
        truncate(random_delta(1), energy=energy)


def test_all_the_energy_keeps_shifts_that_vanish_beside_the_largest() -> None:
    values = [2.0**63, 1.0, -(2.0**-149), 0.0]
    assert shifts(truncate(spectrum(values), energy=1)) == values
    assert shifts(truncate(spectrum(values), energy=0.999999)) == [2.0**63, 0, 0, 0]
