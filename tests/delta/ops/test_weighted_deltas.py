"""Weighted deltas have one shape: a delta, or a pair of a delta and its weight; `weights` say the same beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.deltas import CONV, NORM, QUERY, TEXT, random_delta

from svdiff_delta import Delta, add, merge
from svdiff_delta.errors import InputError
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge import METHODS
from svdiff_delta.ops.weights import Weight, weigh

A, B, C = (random_delta(seed) for seed in (1, 2, 3))
Operation = Callable[..., Delta]


def merged(*deltas: Any, **options: Any) -> Delta:
    return merge(deltas, **options)


both = pytest.mark.parametrize("operation", [add, merged])


@both
def test_pairs_are_deltas_with_weights(operation: Operation) -> None:
    found = operation((A, 0.3), B, (C, {"unet-1d": 2.0, TEXT: 0.0}))
    factors = {CONV: (0.3, 1, 1), NORM: (0.3, 1, 2), QUERY: (0.3, 1, 1), TEXT: (0.3, 1, 0)}
    for name, of in factors.items():
        expected = sum(w * delta[name].astype(np.float64) for w, delta in zip(of, (A, B, C), strict=True))
        assert np.array_equal(found[name], np.asarray(expected).astype(np.float32))


@both
def test_pairs_and_weights_give_the_same_bytes(operation: Operation) -> None:
    weights = [0.5, Weight(0.1, {"text": 2.0}), {"unet": -1.0}]
    paired = operation(*zip((A, B, C), weights, strict=True))
    assert dumps(paired) == dumps(operation(A, B, C, weights=weights))


@both
def test_deltas_alone_have_weight_1(operation: Operation) -> None:
    assert dumps(operation(A, B)) == dumps(operation((A, 1), (B, 1.0))) == dumps(operation(A, B, weights=(1, 1)))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.weighted])
def test_every_method_with_weights_takes_pairs(method: str) -> None:
    options: dict[str, Any] = {key: 0.5 for key in METHODS[method].options if key == "density"}
    paired = merge([(A, 2.0), (B, 3.0)], method=method, **options)
    assert dumps(paired) == dumps(merge([A, B], method=method, weights=(2, 3), **options))


def test_a_method_without_weights_takes_no_pairs() -> None:
    with pytest.raises(InputError, match=r"^slerp takes no weights: use alpha$"):
        merge([(A, 1.0), B], method="slerp", alpha=0.5)


@both
@pytest.mark.parametrize("weights", [(1, 1), (1,), ()])
def test_weights_come_in_one_way(operation: Operation, weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"^weights come twice: in pairs .*: give them in one way$"):
        operation((A, 0.5), B, weights=weights)


@both
@pytest.mark.parametrize("weight", [float("nan"), float("inf"), {"unet": float("-inf")}])
def test_a_weight_of_a_pair_is_finite(operation: Operation, weight: Any) -> None:
    with pytest.raises(InputError, match=r"^weights must be finite numbers$"):
        operation(A, (B, weight))


@both
@pytest.mark.parametrize(
    ("odd", "kind"),
    [("b.safetensors", "str"), ((B,), "tuple"), ((B, C), "tuple"),
     ((B, 1, 2), "tuple"), ((0.5, B), "tuple"), ([B, 1], "list"),
     ((B, None), "tuple"), (None, "NoneType")],
)  # fmt: skip
def test_what_is_neither_a_delta_nor_a_pair_is_refused(operation: Operation, odd: Any, kind: str) -> None:
    with pytest.raises(InputError, match=rf"^input 2 is neither a delta nor a pair .* type {kind}: open files with `l"):
        operation(A, odd)


@both
@pytest.mark.parametrize("weight", ["much", [1.0], {"unet": None}, {"unet": "much"}])
def test_a_weight_is_a_number_or_says_numbers(operation: Operation, weight: Any) -> None:
    with pytest.raises(InputError, match=r"^(a weight|unet): must be a number, is of type \w+$"):
        operation(A, (B, weight))


def test_an_iterable_is_read_once() -> None:
    assert weigh(iter([A, (B, 2)])) == [(A, Weight()), (B, Weight(2.0))]
