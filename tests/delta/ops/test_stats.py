"""Deltas in numbers, against numpy on the plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.deltas import CONV, METADATA, NORM, PARAMETERS, QUERY, TEXT, of_another_base, part, random_delta
from support.sd15 import LAYOUT, sd15_delta

from svdiff_delta import Delta, add, scale, select
from svdiff_delta.errors import BaseMismatchError, InputError
from svdiff_delta.ops.stats import (
    block_of,
    by_block,
    correlations,
    cosines,
    difference,
    interference,
    mean_cosine,
    norms,
    relative_difference,
    summarize,
)

A, B, C = (random_delta(seed) for seed in (1, 2, 3))
WEIGHT = part(METADATA, CONV)


def vector(delta: Delta, *names: str) -> NDArray[np.float64]:
    """δ of these parameters (of all if none is named) as one float64 vector."""
    return np.concatenate([delta[name].astype(np.float64) for name in names or delta])


def cosine(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


def conv(*values: float) -> Delta:
    return Delta({CONV: np.array(values)}, WEIGHT)


def test_a_cosine_is_that_of_the_two_vectors_of_each_parameter() -> None:
    assert cosines(A, B) == pytest.approx({name: cosine(vector(A, name), vector(B, name)) for name in PARAMETERS})


def test_only_parameters_of_both_have_a_cosine() -> None:
    assert list(cosines(select(A, CONV, NORM), select(B, NORM, QUERY))) == [NORM]


def test_a_parameter_without_a_direction_has_no_cosine() -> None:
    still = Delta({**B, NORM: np.zeros(5)}, METADATA)
    assert list(cosines(A, still)) == [name for name in sorted(PARAMETERS) if name != NORM]


def test_the_mean_cosine_is_over_layers_and_not_over_numbers() -> None:
    expected = np.mean([cosine(vector(A, name), vector(B, name)) for name in PARAMETERS])
    assert mean_cosine(A, B) == pytest.approx(float(expected))
    assert mean_cosine(A, B) != pytest.approx(cosine(vector(A), vector(B)), rel=1e-3)


@pytest.mark.parametrize("factor", [2.0, 1e-20, -3.0])
def test_a_cosine_does_not_depend_on_length(factor: float) -> None:
    assert cosines(A, scale(A, factor)) == pytest.approx(dict.fromkeys(A, float(np.sign(factor))))


def test_correlations_are_the_mean_cosines_of_all_pairs() -> None:
    found = correlations([A, B, C])
    expected = [[1, mean_cosine(A, B), mean_cosine(A, C)], [0, 1, mean_cosine(B, C)], [0, 0, 1]]
    assert np.array_equal(found, found.T)
    assert np.triu(found).tolist() == np.array(expected).tolist()


def test_deltas_that_move_nothing_in_common_have_no_cosine() -> None:
    with pytest.raises(
        InputError, match=r"^the deltas move no parameter in common: compare deltas of the same layers$"
    ):
        cosines(select(A, CONV), select(B, NORM))
    with pytest.raises(InputError, match="move no parameter in common"):
        cosines(A, scale(B, 0))


def test_interference_is_the_cosine_of_all_common_parameters_as_one_vector() -> None:
    assert interference(A, B).cosine == pytest.approx(cosine(vector(A), vector(B)))
    a, b = select(A, CONV, NORM), select(B, NORM, CONV, QUERY)
    assert interference(a, b).cosine == pytest.approx(cosine(vector(A, CONV, NORM), vector(B, CONV, NORM)))


def test_conflicts_are_the_share_of_opposite_signs_among_what_both_move() -> None:
    found = interference(conv(1, -1, 1, 0, 2, 0), conv(-1, -1, -3, 1, 0, 0))
    assert found.conflicts == 2 / 3
    assert found.clipped is None
    x, y = vector(A), vector(B)
    assert interference(A, B).conflicts == pytest.approx((x * y < 0).sum() / ((x != 0) & (y != 0)).sum())


def test_deltas_apart_do_not_interfere() -> None:
    found = interference(select(A, CONV), select(B, NORM))
    assert (found.cosine, found.conflicts) == (0, 0)


def test_clipped_are_the_singular_values_that_the_sum_puts_below_0() -> None:
    sigma = np.array([3.0, 2.0, 1.0, 0.5, 0.25, 0.0])
    a, b = conv(-2, -1, -1, -0.5, 0, 0), conv(-1, -1.5, 1, -0.125, -0.25, -1)
    sigmas = {CONV: sigma, "unet.other.weight": np.zeros(3)}
    assert interference(a, b, sigmas).clipped == 3  # −0.5, −0.125 and −1; exactly 0 is not cut
    assert interference(a, b, {}).clipped == 0


def test_clipped_counts_what_only_one_of_them_shifts() -> None:
    sigma = np.full(6, 0.5)
    a = conv(-1, 0, 0, 0, -0.6, -0.4)
    assert interference(a, select(B, NORM), {CONV: sigma}).clipped == 2
    assert interference(select(B, NORM), a, {CONV: sigma}).clipped == 2


def test_clipped_is_not_lost_in_float32() -> None:
    sigma = np.full(6, 1.0)
    a, b = conv(*[-1.0] * 6), conv(*[-1e-12] * 6)
    assert interference(a, b, {CONV: sigma}).clipped == 6


def test_a_difference_is_the_norm_of_the_difference_of_each_parameter() -> None:
    found = difference(A, B)
    expected = {name: float(np.sqrt(((vector(B, name) - vector(A, name)) ** 2).sum())) for name in sorted(PARAMETERS)}
    assert found.norms == pytest.approx(expected)
    assert found.norm == pytest.approx(float(np.sqrt(((vector(B) - vector(A)) ** 2).sum())))
    assert found.relative == pytest.approx(found.norm / float(np.sqrt((vector(A) ** 2).sum())))
    assert (found.changed, found.equal, found.only_a, found.only_b) == (4, False, [], [])


def test_what_only_one_shifts_counts_as_zeros_in_the_other() -> None:
    found = difference(select(A, CONV, NORM), select(B, NORM, TEXT))
    assert (found.only_a, found.only_b) == ([CONV], [TEXT])
    assert found.norms[CONV] == pytest.approx(norms(A)[CONV])
    assert found.norms[TEXT] == pytest.approx(norms(B)[TEXT])


def test_zeros_that_only_one_has_are_a_difference_of_0_and_still_not_equal() -> None:
    found = difference(A, Delta({CONV: A[CONV]}, WEIGHT))
    assert found.norms[CONV] == 0
    zeros = scale(select(A, NORM), 0)
    found = difference(select(A, CONV), add(select(A, CONV), zeros))
    assert (found.norm, found.changed, found.equal, found.only_b) == (0, 0, False, [NORM])


def test_a_delta_does_not_differ_from_itself() -> None:
    found = difference(A, A)
    assert (found.norm, found.relative, found.changed, found.equal) == (0, 0, 0, True)


def test_the_smallest_difference_is_seen() -> None:
    other = {**A, CONV: np.nextafter(A[CONV], np.float32(9))}
    found = difference(A, Delta(other, METADATA))
    assert (found.changed, found.equal) == (1, False)


def test_relative_to_nothing_a_difference_is_infinite() -> None:
    zero = scale(A, 0)
    assert difference(zero, A).relative == float("inf")
    assert difference(zero, zero).relative == 0


def test_the_parameter_that_differs_most_for_its_size_is_named() -> None:
    other = {**A, CONV: A[CONV] * np.float32(1.5), NORM: A[NORM] * np.float32(1.25)}
    whole, worst, name = relative_difference(A, Delta(other, METADATA))
    assert whole == pytest.approx(difference(A, Delta(other, METADATA)).relative)
    assert worst == pytest.approx(0.5, rel=1e-6)
    assert name == CONV


@pytest.mark.parametrize("compare", [cosines, difference, interference, mean_cosine])
def test_deltas_of_different_bases_are_not_compared(compare: Callable[[Delta, Delta], object]) -> None:
    with pytest.raises(BaseMismatchError, match="different bases"):
        compare(A, random_delta(2, of_another_base()))


def test_a_summary_counts_and_measures_all_parameters() -> None:
    found = summarize(A)
    x = vector(A)
    assert (found.parameters, found.numbers) == (4, x.size)
    assert found.norm == pytest.approx(float(np.sqrt((x**2).sum())))
    assert found.largest == np.abs(x).max()
    assert norms(A) == pytest.approx({name: float(np.sqrt((vector(A, name) ** 2).sum())) for name in A})


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("unet.down_blocks.1.attentions.0.proj_in.weight", "unet down.1"),
        ("unet.up_blocks.3.resnets.2.conv1.weight", "unet up.3"),
        ("unet.mid_block.resnets.0.conv1.weight", "unet mid"),
        ("unet.conv_in.weight", "unet conv_in"),
        ("unet.time_embedding.linear_1.weight", "unet time_embedding"),
        ("text_encoder.text_model.encoder.layers.11.mlp.fc1.weight", "text_encoder 11"),
        ("transformer.transformer_blocks.4.attn.to_q.weight", "transformer 4"),
        ("transformer.single_transformer_blocks.30.proj_mlp.weight", "transformer 30"),
        ("transformer.norm_out.linear.weight", "transformer norm_out"),
    ],
)
def test_a_parameter_belongs_to_a_block(name: str, block: str) -> None:
    assert block_of(name) == block


def test_blocks_come_in_the_order_of_the_forward_pass() -> None:
    assert list(by_block(sd15_delta())) == [
        "unet conv_in",
        "unet time_embedding",
        *(f"unet down.{level}" for level in range(4)),
        "unet mid",
        *(f"unet up.{level}" for level in range(4)),
        "unet conv_norm_out",
        "unet conv_out",
    ]


def test_blocks_add_up_to_the_whole() -> None:
    delta = sd15_delta()
    whole, parts = summarize(delta), by_block(delta).values()
    assert whole.parameters == sum(part.parameters for part in parts) == len(LAYOUT)
    assert whole.numbers == sum(part.numbers for part in parts)
    assert whole.norm == pytest.approx(float(np.sqrt(sum(part.norm**2 for part in parts))))
    assert whole.largest == max(part.largest for part in parts)


def test_inputs_with_different_runs_are_compared() -> None:
    items = {CONV: replace(PARAMETERS[CONV], tied=((0, 1),), null=1)}
    tied = Delta({CONV: np.array([1.0, 1, 2, 3, 4, 0])}, replace(METADATA, parameters=items))
    other = conv(1, 2, 3, 4, 5, 6)
    assert cosines(tied, other)[CONV] == pytest.approx(cosine(vector(tied), vector(other)))
    assert difference(tied, other).norm == pytest.approx(float(np.sqrt(1 + 1 + 1 + 1 + 36)))
