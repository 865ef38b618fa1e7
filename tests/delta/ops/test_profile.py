"""Where a delta acts, and how two of them meet, against what a loop over their numbers finds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from support.deltas import CONV, METADATA, NORM, QUERY, TEXT, norm_delta, of_another_base, part, random_delta
from support.sd15 import sd15_delta

from svdiff_delta.errors import BaseMismatchError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.overlap import overlap
from svdiff_delta.ops.profile import profile
from svdiff_delta.ops.stats import interference, summarize


def test_energy_is_the_exact_sum_of_squares_to_the_last_digits() -> None:
    delta = sd15_delta()
    found = profile(delta)
    for name, layer in found.layers.items():
        exact = math.fsum(float(value) ** 2 for value in delta[name])
        assert layer.energy == pytest.approx(exact, rel=delta[name].size * 2**-52)  # as many roundings, each of 2⁻⁵³
    assert sum(block.energy for block in found.blocks.values()) == pytest.approx(summarize(delta).norm ** 2, rel=1e-12)
    assert found.largest == summarize(delta).largest
    assert (len(found.layers), sum(block.parameters for block in found.blocks.values())) == (391, 391)


def test_without_singular_values_ranges_are_of_the_shifts() -> None:
    delta = random_delta(1)
    found = profile(delta)
    assert not found.of_sigma
    for name in delta:
        assert (found.layers[name].low, found.layers[name].high) == (delta[name].min(), delta[name].max())


def test_with_singular_values_ranges_say_how_far_they_are_stretched() -> None:
    delta = random_delta(1)
    sigmas = {name: np.linspace(2.0, 0.05, delta[name].size) for name in (CONV, QUERY, TEXT)}
    found = profile(delta, sigmas)
    assert found.of_sigma
    for name, sigma in sigmas.items():
        count = delta[name].size - delta.metadata.parameters[name].null
        ratios = [max(s + float(d), 0.0) / s for s, d in zip(sigma[:count], delta[name][:count], strict=True)]
        assert (found.layers[name].low, found.layers[name].high) == (min(ratios), max(ratios))
    assert found.layers[NORM].low is None


def test_norms_alone_have_no_range_of_singular_values() -> None:
    found = profile(norm_delta([1, 2, 3, 4, 5]), {})
    (block,) = found.blocks.values()
    assert (block.low, block.high, block.energy) == (None, None, 55.0)


def test_what_two_deltas_share_is_what_interference_says() -> None:
    a, b = random_delta(1), random_delta(2)
    found, known = overlap(a, b), interference(a, b)
    assert found.whole.cosine == pytest.approx(known.cosine, rel=1e-12)
    assert (found.whole.conflicts, found.shared) == (known.conflicts, pytest.approx(1.0, rel=1e-12))
    assert sum(each.numbers for each in found.blocks.values()) == a.metadata.numbers


def test_blocks_count_what_both_move_alone() -> None:
    a = random_delta(1)
    minus = Delta({CONV: -a[CONV], TEXT: 0 * a[TEXT]}, part(METADATA, CONV, TEXT))
    found = overlap(a, minus)
    conv = next(each for block, each in found.blocks.items() if block.label == "conv_in")
    assert (conv.cosine, conv.conflicts) == (pytest.approx(-1.0), 1.0)
    text = next(each for block, each in found.blocks.items() if block.component == "text_encoder")
    assert (text.cosine, text.conflicts) == (None, None)
    assert len(found.blocks) == 2
    own = {name: float(np.square(a[name].astype("f8")).sum()) for name in a}
    shared = (2 * own[CONV] + own[TEXT]) / (sum(own.values()) + own[CONV])
    assert found.shared == pytest.approx(shared, rel=1e-12)


def test_tiny_shifts_count_as_signs_though_their_product_is_no_number() -> None:
    tiny = norm_delta([1e-30, -1e-30, 1e-30, 0, 0])
    assert overlap(tiny, norm_delta([1e-30] * 5)).whole.conflicts == pytest.approx(1 / 3)


def test_deltas_of_two_bases_do_not_meet() -> None:
    a = random_delta(1)
    with pytest.raises(BaseMismatchError):
        overlap(a, Delta(dict(a), of_another_base()))
    nothing = Delta({}, replace(METADATA, parameters={}))
    assert overlap(nothing, nothing).shared is None
