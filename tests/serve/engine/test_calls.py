"""Joined calls: one forward of several calls gives what each of them gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.live import CASES, tiny
from support.weights import normal

from svdiff_serve.engine.calls import Call, group, join, key_of, split


def call(values: dict[str, Any], component: str = "unet", *, joins: bool = True) -> Call:
    return Call(component, "forward", values, joins)


def inputs(name: str, samples: int, number: int) -> dict[str, Any]:
    """What a model is called with: other numbers and another time for each call."""
    found = dict(CASES[name].inputs(samples))
    for key, value in found.items():
        if key == "timestep":
            time = torch.tensor(float(3 + 40 * number) / (100.0 if name == "Flux" else 1.0))
            found[key] = time if name == "UNet" else time.expand(samples)
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and not key.endswith("_ids"):
            found[key] = normal(*value.shape, seed=10 * number)
    return found


@pytest.mark.parametrize("name", ["UNet", "Stable Diffusion 3", "Flux", "CLIP's text encoder", "T5's encoder"])
def test_a_joined_call_gives_what_each_call_gives_alone(name: str) -> None:
    model = tiny(name)
    calls = [call(inputs(name, samples, number)) for number, samples in enumerate((2, 1, 2))]
    assert group(calls, 8) == [[0, 1, 2]]
    with torch.no_grad():
        joined = split(model(**join(calls)), [2, 1, 2])
        alone = [model(**each.values) for each in calls]
    for found, expected in zip(joined, alone, strict=True):
        # Other batches go through other kernels: their sums of at most some hundred terms differ in the last bits.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)


def test_tuples_are_shared_out_too() -> None:
    calls = [call({"x": torch.ones(2, 3)}), call({"x": torch.zeros(1, 3)})]
    one, two = split((torch.arange(3.0), "same", None), [2, 1])
    assert (one[1], two[2]) == ("same", None)
    assert (one[0].tolist(), two[0].tolist()) == ([0.0, 1.0], [2.0])
    assert join(calls)["x"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]


def test_calls_of_other_sizes_dtypes_or_flags_are_not_joined() -> None:
    plain = {"x": torch.ones(2, 3), "flag": True}
    others = [{**plain, "x": torch.ones(2, 4)}, {**plain, "x": torch.ones(2, 3).double()}, {**plain, "flag": False}]
    for other in others:
        assert group([call(plain), call(other)], 8) == [[0], [1]]
    assert group([call(plain), call(plain, "other")], 8) == [[0], [1]]


def test_tensors_without_rows_are_the_same_or_the_calls_are_not_joined() -> None:
    rows = torch.ones(2, 3)
    same, other = {"x": rows, "img_ids": torch.ones(5, 3)}, {"x": rows, "img_ids": torch.zeros(5, 3)}
    assert group([call(same), call(dict(same))], 8) == [[0, 1]]
    assert group([call(same), call(other)], 8) == [[0], [1]]


def test_batches_have_so_many_rows_and_not_more() -> None:
    calls = [call({"x": torch.ones(2, 3)}) for _ in range(5)]
    assert group(calls, 4) == [[0, 1], [2, 3], [4]]


def test_a_model_whose_calls_are_not_known_to_join_runs_them_one_by_one() -> None:
    calls = [call({"x": torch.ones(2, 3)}, joins=False) for _ in range(2)]
    assert group(calls, 8) == [[0], [1]]
    assert key_of(calls[0]) != key_of(calls[1])


def test_times_of_each_call_become_times_of_each_row() -> None:
    calls = [
        call({"sample": torch.ones(2, 3, 4), "timestep": torch.tensor(9)}),
        call({"sample": torch.ones(1, 3, 4), "timestep": torch.tensor(5)}),
    ]
    assert join(calls)["timestep"].tolist() == [9, 9, 5]
