"""Number formats of a whole delta: what rounding loses, and when a wider format is taken (spec, 4.4 and 7.3)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.deltas import METADATA, PARAMETERS, parameter, random_delta

from svdiff_delta import Delta, quantize, scale
from svdiff_delta.errors import InputError, TensorError
from svdiff_delta.format.dtypes import BLOCK, STEPS, StoredDtype
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.ops.quantize import WIDER
from svdiff_delta.ops.stats import difference

NAME = "unet.w"
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
DRAWS: dict[str, Draw] = {
    "gaussian": lambda random, size: random.standard_normal(size),
    "laplace": lambda random, size: random.laplace(size=size),
}


def of(values: NDArray[np.floating] | list[float], dtype: StoredDtype = "F32") -> Delta:
    """A delta of one elementwise weight."""
    metadata = replace(METADATA, parameters={NAME: parameter(len(values))})
    return Delta({NAME: np.array(values)}, metadata, dtypes={NAME: dtype})


def loss(a: Delta, b: Delta) -> float:
    """‖b − a‖ / ‖a‖ of the one weight."""
    x, y = a[NAME].astype(np.float64), b[NAME].astype(np.float64)
    return float(np.sqrt(((y - x) ** 2).sum() / (x**2).sum()))


def plain_i8(values: NDArray[np.float32]) -> list[float]:
    """The rounding of section 4.4, in plain Python: the smallest F16 scale that is large enough, counts to even."""
    halves = sorted({struct.unpack("<e", struct.pack("<H", bits))[0] for bits in range(0x7C00)})
    result = []
    for start in range(0, len(values), BLOCK):
        block = [float(value) for value in values[start : start + BLOCK]]
        unit = next(half for half in halves if half >= max(map(abs, block)) / STEPS)
        result += [round(value / unit) * unit if unit else 0.0 for value in block]
    return result


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("size", [320, 1280, 10_000])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 300.0])
def test_i8_loses_at_most_one_percent_of_a_usual_delta(draw: Draw, size: int, spread: float) -> None:
    for seed in range(5):
        delta = of(draw(np.random.default_rng(seed), size) * spread)
        small = quantize(delta)
        assert small.dtype_of(NAME) == "I8"
        assert loss(delta, small) <= 0.01


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_i8_rounds_as_plain_python_does(draw: Draw, size: int) -> None:
    values = (draw(np.random.default_rng(size), size) * 0.01).astype(np.float32)
    assert quantize(of(values), max_error=1)[NAME].tolist() == plain_i8(values)


def outlier(share: float) -> Delta:
    """A block of one large value and 63 that fall between two counts of its scale, over 3 % of it in all."""
    return of([127 * share, *[0.5 * share] * 63])


def test_i8_that_would_lose_over_two_percent_becomes_f16() -> None:
    delta = outlier(2.0**-5)
    assert loss(delta, quantize(delta, max_error=1)) > 0.02
    found = quantize(delta)
    assert found.dtype_of(NAME) == "F16"
    assert found[NAME].tolist() == delta[NAME].tolist()


def test_f16_that_would_lose_over_two_percent_becomes_f32() -> None:
    delta = outlier(2.0**-28)  # below the smallest scale, and 63 of 64 below the smallest F16
    found = quantize(delta)
    assert found.dtype_of(NAME) == "F32"
    assert found[NAME].tolist() == delta[NAME].tolist()


@pytest.mark.parametrize("dtype", ["I8", "F16", "BF16"])
def test_the_allowed_error_is_the_border_between_two_formats(dtype: StoredDtype) -> None:
    delta = of(np.random.default_rng(1).standard_normal(500))
    lost = loss(delta, quantize(delta, dtype, max_error=1))
    assert quantize(delta, dtype, max_error=lost * 1.0001).dtype_of(NAME) == dtype
    assert quantize(delta, dtype, max_error=lost * 0.9999).dtype_of(NAME) == WIDER[dtype]


def test_without_any_error_allowed_values_stay_to_the_bit() -> None:
    delta = random_delta(1)
    for dtype in ("I8", "F16", "BF16", "F32"):
        found = quantize(delta, dtype, max_error=0)
        assert all(np.array_equal(found[name], delta[name]) for name in delta)


def test_what_a_format_holds_exactly_gets_it_without_any_error_allowed() -> None:
    counts = np.random.default_rng(1).integers(-127, 128, 64).astype(np.float64)
    counts[0] = 127
    assert quantize(of(counts * 2.0**-6), max_error=0).dtype_of(NAME) == "I8"
    assert quantize(of([1 + 2.0**-10, 3.0]), "F16", max_error=0).dtype_of(NAME) == "F16"
    assert quantize(of([1 + 2.0**-7, 1e30]), "BF16", max_error=1e-3).dtype_of(NAME) == "BF16"


def test_each_parameter_is_judged_on_its_own() -> None:
    fine, rough = np.random.default_rng(1).standard_normal(64), [127.0, *[0.5] * 63]
    metadata = replace(METADATA, parameters={"unet.a": parameter(64), "unet.b": parameter(64)})
    found = quantize(Delta({"unet.a": fine, "unet.b": rough}, metadata))
    assert found.dtypes == {"unet.a": "I8", "unet.b": "F16"}


@pytest.mark.parametrize("dtype", ["I8", "F16", "BF16"])
def test_zeros_lose_nothing_in_any_format(dtype: StoredDtype) -> None:
    found = quantize(of([0.0] * 70), dtype, max_error=0)
    assert found.dtype_of(NAME) == dtype
    assert not found[NAME].any()


def test_a_value_too_large_for_a_format_takes_the_next() -> None:
    assert quantize(of([65504.0 * 127]), "I8").dtype_of(NAME) == "I8"
    assert quantize(of([65504.0 * 127 + 1]), "I8").dtype_of(NAME) == "F32"
    assert quantize(of([65504.0]), "F16").dtype_of(NAME) == "F16"
    assert quantize(of([65505.0]), "F16").dtype_of(NAME) == "F32"
    assert quantize(of([3.4028234663852886e38]), "BF16").dtype_of(NAME) == "F32"


@pytest.mark.parametrize("dtype", ["I8", "F16", "BF16"])
def test_the_error_that_is_told_is_the_one_of_the_file_read_back(dtype: StoredDtype) -> None:
    delta = random_delta(3)
    found = quantize(delta, dtype, max_error=1)
    read = loads(dumps(found))
    assert read.dtypes == found.dtypes == dict.fromkeys(PARAMETERS, dtype)
    squares = [(read[name].astype("f8") - delta[name]) ** 2 for name in delta]
    whole = [delta[name].astype("f8") ** 2 for name in delta]
    expected = np.sqrt(sum(x.sum() for x in squares) / sum(x.sum() for x in whole))
    assert difference(delta, found).relative == pytest.approx(expected, rel=1e-12)
    assert difference(found, read).equal


@pytest.mark.parametrize("dtype", ["I8", "F16", "BF16"])
def test_back_in_f32_the_rounded_values_stay_and_round_to_themselves(dtype: StoredDtype) -> None:
    once = quantize(random_delta(2), dtype, max_error=1)
    back = quantize(once, "F32")
    again = quantize(back, dtype, max_error=1)
    assert set(back.dtypes.values()) == {"F32"}
    assert all(np.array_equal(back[name], once[name]) for name in once)
    assert all(np.array_equal(again[name], once[name]) for name in once)


def test_what_is_in_the_format_already_keeps_its_bytes() -> None:
    once = quantize(outlier(1.0), max_error=1)
    again = quantize(once, max_error=0)
    assert (again.stored[NAME].data, again.stored[NAME].scales) == (once.stored[NAME].data, once.stored[NAME].scales)


def test_a_tied_run_that_i8_leaves_unequal_is_read_projected() -> None:
    item = replace(parameter(130, 200), tied=((60, 70),))
    values = np.linspace(1, 2, 130)
    values[60:71] = 0.777
    values[0] = 50  # so that the two blocks of the run have different scales
    delta = Delta({NAME: values}, replace(METADATA, parameters={NAME: item}))
    found = quantize(delta, max_error=1)
    raw = found.stored[NAME].decode()
    assert len(set(raw[60:71].tolist())) == 2
    mean = np.float32(raw[60:71].astype("f8").sum() / 11)
    assert set(found[NAME][60:71].tolist()) == {float(mean)}
    assert np.array_equal(loads(dumps(found))[NAME], found[NAME])
    assert difference(delta, found).norm <= np.linalg.norm(raw.astype("f8") - delta[NAME])


def bfloat16(value: float) -> bytes:
    """A float32 as BF16 by `struct` alone: the upper half of its bits, rounded to nearest, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    upper, lower = bits >> 16, bits & 0xFFFF
    return struct.pack("<H", upper + (lower > 0x8000 or (lower == 0x8000 and upper & 1 == 1)))


def test_bf16_rounds_to_nearest_and_to_even_as_struct_says() -> None:
    draw = np.random.default_rng(1)
    halves = (draw.integers(0x3000, 0x4F00, 200).astype(np.uint32) << 16 | 0x8000).view(np.float32)
    values = np.concatenate([draw.standard_normal(500).astype(np.float32), halves, -halves])
    stored = quantize(of(values), "BF16").stored[NAME]
    assert stored.dtype == "BF16"
    assert bytes(stored.data) == b"".join(bfloat16(float(value)) for value in values)


def test_bf16_of_a_result_is_rounded_once_from_float64() -> None:
    found = scale(of([1.0, 1.0]), 1 + 2.0**-8 + 2.0**-40, dtype="BF16")  # by way of float32 it would be 1
    assert found[NAME].tolist() == [1 + 2.0**-7] * 2


def test_the_arguments_are_recorded() -> None:
    lineage = quantize(random_delta(1), "F16", max_error=0.5).metadata.lineage
    assert lineage is not None
    assert lineage.record.operation == "quantize"
    assert lineage.record.arguments == {"dtype": "F16", "max_error": 0.5}


@pytest.mark.parametrize("error", [-0.1, float("nan"), float("-inf")])
def test_an_error_that_is_no_number_from_0_is_refused_as_it_was_given(error: float) -> None:
    with pytest.raises(InputError, match=f"^the largest error must be a number from 0, is {error}$"):
        quantize(random_delta(1), max_error=error)


def test_a_number_in_a_file_that_is_not_finite_is_refused() -> None:
    raw = dumps(of([1.0, 2.0]))
    with pytest.raises(TensorError, match=f"{NAME}: δ holds NaN"):
        quantize(loads(raw[:-4] + np.float32("nan").tobytes()))
