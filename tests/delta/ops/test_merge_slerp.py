"""Merging by slerp, against the great circle in plain Python (spec, section 7.6)."""

from __future__ import annotations

from dataclasses import replace
from math import atan2, cos, pi, sin, sqrt

import numpy as np
import pytest
from support.deltas import METADATA, NORM, PARAMETERS, norm_delta, parameter, random_delta

from svdiff_delta import Delta, interpolate, merge
from svdiff_delta.errors import InputError

Vector = list[float]

A, B, C = (random_delta(seed) for seed in (1, 2, 3))


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
        found = merge([norm_delta([2, 0]), norm_delta([0, 2])], method="slerp", alpha=alpha)[NORM]
        quarter = pi / 2 * (1 - alpha)
        assert found.tolist() == pytest.approx([2 * cos(quarter), 2 * sin(quarter)], abs=1e-7)


@pytest.mark.parametrize(
    "other",
    [[0.0, 0, 0], [3.0, 6, 9], [-1.0, -2, -3], [1 + 1e-7, 2, 3]],
    ids=["zero", "along", "against", "nearly along"],
)
def test_slerp_without_an_angle_is_a_straight_line(other: list[float]) -> None:
    a, b = norm_delta([1, 2, 3]), norm_delta(other)
    assert np.array_equal(merge([a, b], method="slerp", alpha=0.3)[NORM], interpolate(a, b, 0.3)[NORM])


def test_slerp_counts_a_run_as_often_as_it_is_long() -> None:
    item = replace(parameter(3, 4), tied=((0, 1),))
    metadata = replace(METADATA, parameters={"unet.w": item})
    a, b = (Delta({"unet.w": np.array(values)}, metadata) for values in ([1.0, 1, 0], [1.0, 1, 2]))
    found = merge([a, b], method="slerp", alpha=0.5)["unet.w"].tolist()
    assert found == pytest.approx(on_the_arc([1, 1, 0], [1, 1, 2], 0.5), rel=1e-6)
    assert found[0] != pytest.approx(on_the_arc([1, 0], [1, 2], 0.5)[0], rel=1e-2)


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_takes_two(count: int) -> None:
    with pytest.raises(InputError, match=f"^slerp takes 2 deltas, {count} were given$"):
        merge([A, B, C][:count], method="slerp", alpha=0.5)


def test_slerp_takes_no_weights() -> None:
    with pytest.raises(InputError, match=r"^slerp takes no weights: use alpha$"):
        merge([A, B], method="slerp", alpha=0.5, weights=(1, 1))
