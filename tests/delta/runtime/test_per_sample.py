"""One batch, many deltas: every sample computes what a run with its delta alone computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.live import CASES, delta_of, relative, rows, run, tiny
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.arithmetic import add
from svdiff_delta.runtime import Handle, attach

SAMPLES = ["dog", "cat", None, "dog"]


def alone(model: nn.Module, name: str, handle: Handle, sample: str | None, inputs: dict[str, Any]) -> Tensor:
    """What one sample's inputs give with its delta on the whole model."""
    handle.enable()
    if sample is None:
        handle.disable()
    else:
        handle.set_adapters(sample)
    return run(model, name, inputs)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_sample_computes_what_it_does_alone(name: str, exact: bool) -> None:
    model, inputs = tiny(name), CASES[name].inputs(4)
    deltas = {"dog": delta_of(name, seed=1), "cat": delta_of(name, seed=2)}
    with attach(model, deltas, exact=exact) as handle:
        with handle.per_sample(SAMPLES):
            together = run(model, name, inputs)
        singles = [alone(model, name, handle, sample, rows(inputs, i, 4)) for i, sample in enumerate(SAMPLES)]
    for found, expected in zip(together, singles, strict=True):
        assert relative(found, expected[0]) < 1e-5
    assert relative(together[0], together[1]) > 0.01


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 8), (12,)),
    "linear on tokens of heads": (nn.Linear(12, 8), (3, 2, 12)),
    "convolution": (nn.Conv2d(6, 8, 3, padding=1), (6, 5, 5)),
    "strided convolution": (nn.Conv1d(6, 8, 3, stride=2), (6, 9)),
    "grouped convolution": (nn.Conv2d(8, 12, 3, groups=4, padding=1), (8, 5, 5)),
    "transposed convolution": (nn.ConvTranspose2d(6, 4, 3, stride=2), (6, 5, 5)),
    "grouped transposed convolution": (nn.ConvTranspose2d(6, 4, 3, groups=2), (6, 5, 5)),
    "layer norm": (nn.LayerNorm(10), (3, 10)),
    "layer norm over a plane": (nn.LayerNorm((4, 5)), (3, 4, 5)),
    "group norm": (nn.GroupNorm(2, 6), (6, 4, 4)),
    "RMS norm": (nn.RMSNorm(10), (3, 2, 10)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_takes_a_delta_for_each_sample(layer: str, dtype: torch.dtype) -> None:
    module, shape = LAYERS[layer]
    model = named(copy.deepcopy(module)).to(dtype)
    zero = live_zero(model)
    deltas = {name: random_delta(zero, size=0.3, seed=seed) for seed, name in enumerate(["dog", "cat"])}
    x = normal(6, *shape).to(dtype)
    with attach(model, deltas) as handle:
        with handle.per_sample(["dog", "cat", None]):
            together = model(x)
        for index, sample in enumerate(["dog", "cat", None, "dog", "cat", None]):
            handle.set_adapters(sample or "dog", 1.0 if sample else 0.0)
            assert relative(together[index], model(x[index : index + 1])[0]) < (
                1e-6 if dtype == torch.float32 else 1e-2
            )
        assert relative(together[0], model(x[:1])[0]) > 1e-2


@pytest.fixture
def attached() -> Any:
    model = named(nn.Linear(12, 8))
    zero = live_zero(model)
    dog, cat = (random_delta(zero, size=0.3, seed=seed) for seed in (1, 2))
    with attach(model, {"dog": dog, "cat": cat}) as handle:
        yield model, handle, dog, cat


def with_delta(delta: Delta, x: Tensor) -> Tensor:
    model = named(nn.Linear(12, 8))
    with attach(model, delta):
        return torch.as_tensor(model(x))


def test_the_doubled_batch_of_guidance_is_the_list_twice(attached: Any) -> None:
    model, handle, dog, cat = attached
    x = normal(4, 12)
    with handle.per_sample(["dog", "cat"]):
        together = model(x)
    for index, delta in enumerate([dog, cat, dog, cat]):
        assert relative(together[index], with_delta(delta, x[index])) < 1e-6


def test_a_sample_may_have_several_deltas_with_weights(attached: Any) -> None:
    model, handle, dog, cat = attached
    x = normal(2, 12)
    with handle.per_sample([{"dog": 0.8, "cat": -0.5}, {}]):
        together = model(x)
    assert relative(together[0], with_delta(add(dog, cat, weights=(0.8, -0.5)), x[0])) < 1e-6
    assert relative(together[1], named(nn.Linear(12, 8))(x[1])) < 1e-6


def test_the_scale_and_a_swap_count_inside_the_block(attached: Any) -> None:
    model, handle, _, cat = attached
    x = normal(1, 12)
    with handle.per_sample(["dog"]):
        handle.set_scale(0.5)
        handle.swap(cat, "dog")
        scaled = model(x)
    assert relative(scaled, with_delta(add(cat, weights=[0.5]), x)) < 1e-6


def test_after_the_block_all_samples_have_the_active_deltas_again(attached: Any) -> None:
    model, handle, _, _ = attached
    handle.set_adapters("dog")
    x = normal(3, 12)
    before = model(x)
    with pytest.raises(InputError), handle.per_sample(["dog", "cat"]):
        model(x)
    assert torch.equal(model(x), before)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_batch_that_is_no_multiple_of_the_list_is_refused(attached: Any) -> None:
    model, handle, _, _ = attached
    match = r"model: a batch of 5 is no multiple of the 2 samples.*None, for every sample"
    with handle.per_sample(["dog", None]), pytest.raises(InputError, match=match):
        model(normal(5, 12))


def test_a_layer_that_is_called_without_its_model_counts_its_own_rows(attached: Any) -> None:
    model, handle, _, _ = attached
    with handle.per_sample(["dog", "cat"]), pytest.raises(InputError, match=r"model\.layer\.weight: a batch of 3"):
        model.layer(normal(3, 12))


class Flattening(nn.Module):
    """Mixes samples and tokens in one dimension, as layers with experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


def test_a_layer_that_does_not_see_samples_one_by_one_is_refused_by_name() -> None:
    model = Flattening().requires_grad_(False)
    with attach(model, {"dog": random_delta(live_zero(model))}) as handle:
        match = r"model\.layer\.weight: the layer sees 6 rows and the model a batch of 2"
        with handle.per_sample(["dog", None]), pytest.raises(InputError, match=match):
            model(normal(2, 3, 12))


def test_unknown_names_are_refused(attached: Any) -> None:
    _, handle, _, _ = attached
    with (
        pytest.raises(InputError, match=r"there is no delta 'cow', there are 'dog', 'cat'"),
        handle.per_sample(["cow"]),
    ):
        raise AssertionError


@pytest.mark.parametrize("samples", [[], "dog"])
def test_something_else_than_a_list_of_samples_is_refused(attached: Any, samples: Any) -> None:
    _, handle, _, _ = attached
    with pytest.raises(InputError, match="takes a list"), handle.per_sample(samples):
        raise AssertionError


def test_blocks_in_blocks_are_refused(attached: Any) -> None:
    _, handle, _, _ = attached
    again = handle.per_sample(["cat"])
    with handle.per_sample(["dog"]), pytest.raises(AttachError, match="leave the block"), again:
        raise AssertionError


def test_a_delta_that_samples_have_is_not_deleted(attached: Any) -> None:
    _, handle, _, _ = attached
    with handle.per_sample(["dog", None]), pytest.raises(AttachError, match="samples have the delta 'dog'"):
        handle.delete("dog")


def test_fused_weights_are_the_same_for_all_samples() -> None:
    model = named(nn.Linear(12, 8))
    handle = attach(model, {"dog": random_delta(live_zero(model))}, mode="fused")
    with pytest.raises(AttachError, match='mode="live"'), handle.per_sample(["dog"]):
        raise AssertionError
