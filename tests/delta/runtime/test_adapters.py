"""Deltas under names: weighted, switched off, added, deleted, swapped; summed first and clipped once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.live import double_copy, relative
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import nn

from svdiff_delta.errors import AttachError, BaseMismatchError, InputError, TensorError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.arithmetic import add, scale
from svdiff_delta.ops.select import select
from svdiff_delta.runtime import Handle, attach

MODES: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


def model_of_two() -> nn.Module:
    model = nn.Sequential(named(nn.Linear(12, 8)), named(nn.LayerNorm(8)))
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


ZERO = live_zero(model_of_two())
DOG, CAT, COW = (random_delta(ZERO, size=0.4, seed=seed) for seed in range(3))
X = normal(3, 12)


@pytest.fixture(params=MODES)
def attached(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, Handle]]:
    model = model_of_two()
    with attach(model, {"dog": DOG, "cat": CAT}, **MODES[request.param]) as handle:
        yield model, handle


def shows(model: nn.Module, *deltas: Delta) -> bool:
    """Whether the model computes with the sum of these deltas."""
    expected = double_copy(model_of_two(), *(deltas or (ZERO,)))(X.double())
    return relative(model(X), expected) < 1e-6


def test_several_deltas_are_all_active_at_first(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    assert handle.active == {"dog": 1.0, "cat": 1.0}
    assert shows(model, DOG, CAT)


@pytest.mark.parametrize("mode", MODES)
def test_deltas_may_come_with_weights(mode: str) -> None:
    model = model_of_two()
    with attach(model, {"dog": (DOG, 0.5), "cat": CAT, "cow": (COW, -2)}, **MODES[mode]) as handle:
        assert handle.active == {"dog": 0.5, "cat": 1.0, "cow": -2.0}
        assert shows(model, scale(DOG, 0.5), CAT, scale(COW, -2))
        handle.set_adapters("dog")
        assert shows(model, DOG)


def test_a_single_delta_may_come_with_its_weight() -> None:
    model = model_of_two()
    with attach(model, (DOG, 0.25), name="dog", scale=2.0) as handle:
        assert handle.active == {"dog": 0.25}
        assert shows(model, scale(DOG, 0.5))


def test_a_training_can_start_from_a_weighted_delta() -> None:
    model = model_of_two()
    with attach(model, (DOG, 0.5), trainable=True) as handle, torch.no_grad():
        assert shows(model, scale(DOG, 0.5))
        assert {name: values.tolist() for name, values in handle.delta().items()} == {
            name: values.tolist() for name, values in scale(DOG, 0.5).items()
        }


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"dog": DOG, "cat": (CAT, float("inf"))}, "^weights must be finite numbers$"),
        ((DOG, "much"), "^a weight: must be a number, is of type str$"),
        ({"dog": (DOG, {"*": 0.5})}, r"^the weight of 'dog' has selectors: .*: attach what `add` makes of the delta"),
        ({"dog": "dog.safetensors"}, "^input 1 is neither a delta nor a pair .* type str: open files with `load`$"),
        ([DOG, CAT], "^input 1 is neither a delta nor a pair .* type list"),
        ((DOG, CAT), "^input 1 is neither a delta nor a pair .* type tuple"),
    ],
)
def test_what_cannot_be_attached_leaves_the_model_alone(given: Any, match: str) -> None:
    model = model_of_two()
    with pytest.raises(InputError, match=match):
        attach(model, given)
    attach(model, DOG).detach()


def test_a_single_delta_is_called_default_unless_it_has_a_name() -> None:
    with attach(model_of_two(), DOG) as handle:
        assert handle.adapters == ("default",)
    with attach(model_of_two(), DOG, name="dog") as handle:
        assert handle.adapters == ("dog",)


def test_named_deltas_are_summed_with_their_weights(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.set_adapters(["dog", "cat"], [0.8, -0.5])
    assert handle.active == {"dog": 0.8, "cat": -0.5}
    assert shows(model, add(DOG, CAT, weights=(0.8, -0.5)))


def test_one_name_and_one_weight_for_all_are_enough(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.set_adapters("cat")
    assert shows(model, CAT)
    handle.set_adapters(["cat", "dog"], 0.5)
    assert shows(model, scale(CAT, 0.5), scale(DOG, 0.5))


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_clipped_once(mode: str) -> None:
    """Deltas of −2σ and +3σ are +σ together; clipped one by one they would be +2σ."""
    model = nn.Sequential(named(nn.Linear(12, 8, bias=False)))
    zero = live_zero(model)
    sigma = np.linalg.svd(model[0].layer.weight.half().double().numpy(), compute_uv=False)
    (name,) = zero
    down, up = (Delta({name: factor * sigma}, zero.metadata) for factor in (-2, 3))
    expected = 2 * model(X)
    with attach(model, {"down": down, "up": up}, **MODES[mode]):
        assert relative(model(X), expected) < 1e-3  # the weight is not exact in the basis dtype


def test_the_scale_is_a_factor_on_all(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.set_adapters(["dog", "cat"], [1.0, 0.5])
    handle.set_scale(0.4)
    assert handle.scale == 0.4
    assert shows(model, add(DOG, CAT, weights=(0.4, 0.2)))


def test_disabled_deltas_are_off_until_they_are_enabled(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.disable()
    assert not handle.enabled
    assert shows(model)
    handle.set_adapters("cat")  # stays off
    assert shows(model)
    handle.enable()
    assert shows(model, CAT)


def test_an_added_delta_is_there_but_not_active(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.add("cow", COW)
    assert handle.adapters == ("dog", "cat", "cow")
    assert shows(model, DOG, CAT)
    handle.set_adapters("cow")
    assert shows(model, COW)


def test_a_deleted_delta_is_no_longer_active(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.delete("dog")
    assert handle.adapters == ("cat",)
    assert handle.active == {"cat": 1.0}
    assert shows(model, CAT)
    handle.delete("cat")
    assert shows(model)


def test_a_swap_keeps_name_and_weight(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.set_adapters(["dog", "cat"], [1.0, 0.5])
    handle.swap(COW, "cat")
    assert handle.active == {"dog": 1.0, "cat": 0.5}
    assert shows(model, DOG, scale(COW, 0.5))


def test_a_part_of_the_layers_is_shifted_by_a_delta_that_has_no_more(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    handle.add("norm", select(COW, "1d"))
    handle.set_adapters(["dog", "norm"])
    assert shows(model, add(DOG, select(COW, "1d")))


def test_what_is_on_the_model_is_a_delta_with_a_lineage(attached: tuple[nn.Module, Handle]) -> None:
    _, handle = attached
    handle.set_adapters(["dog", "cat"], [0.8, 0.5])
    found, expected = handle.delta(), add(DOG, CAT, weights=(0.8, 0.5))
    assert found.stored == expected.stored
    assert found.metadata.lineage == expected.metadata.lineage


def test_nothing_active_is_no_delta(attached: tuple[nn.Module, Handle]) -> None:
    _, handle = attached
    handle.delete("dog", "cat")
    with pytest.raises(AttachError, match="no delta is active"):
        handle.delta()


# -- bad input


def test_unknown_names_are_refused(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    with pytest.raises(InputError, match=r"there is no delta 'cow', there are 'dog', 'cat': `add` it"):
        handle.set_adapters(["dog", "cow"])
    with pytest.raises(InputError, match="there is no delta 'cow'"):
        handle.delete("cow")
    with pytest.raises(InputError, match="there is no delta 'cow'"):
        handle.swap(COW, "cow")
    assert shows(model, DOG, CAT)


def test_names_that_repeat_are_refused(attached: tuple[nn.Module, Handle]) -> None:
    _, handle = attached
    with pytest.raises(InputError, match="'dog' is named twice: name it once, with the sum of its weights"):
        handle.set_adapters(["dog", "cat", "dog"])
    with pytest.raises(InputError, match="there is a delta 'dog' already"):
        handle.add("dog", COW)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_weights_that_are_not_as_many_as_names_are_refused(
    attached: tuple[nn.Module, Handle], weights: list[float]
) -> None:
    _, handle = attached
    with pytest.raises(InputError, match=f"2 deltas need as many weights, {len(weights)} were given"):
        handle.set_adapters(["dog", "cat"], weights)


def test_weights_that_are_not_finite_are_refused(attached: tuple[nn.Module, Handle]) -> None:
    _, handle = attached
    with pytest.raises(InputError, match="the weight of 'cat' must be a finite number, is inf"):
        handle.set_adapters(["dog", "cat"], [1.0, float("inf")])


def test_no_names_at_all_are_refused(attached: tuple[nn.Module, Handle]) -> None:
    _, handle = attached
    with pytest.raises(InputError, match=r"`disable\(\)` turns all of them off"):
        handle.set_adapters([])


def test_a_sum_that_is_too_large_is_refused_and_changes_nothing(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    with pytest.raises(TensorError, match=r"model\.0\.layer\.weight: δ times its weights is too large"):
        handle.set_scale(1e39)
    assert handle.scale == 1.0
    assert shows(model, DOG, CAT)


def test_a_delta_for_another_base_is_refused_by_name(attached: tuple[nn.Module, Handle]) -> None:
    model, handle = attached
    other = model_of_two()
    other[0].layer.weight.data += 1
    odd = random_delta(live_zero(other))
    for put in (handle.swap, lambda delta, _: handle.add("odd", delta)):
        with pytest.raises(BaseMismatchError, match=r"model\.0\.layer\.weight: .*different bases"):
            put(odd, "dog")
    assert shows(model, DOG, CAT)


def test_a_delta_for_other_layers_is_refused_by_name() -> None:
    model = model_of_two()
    with attach(model, select(DOG, "1d")) as handle:
        match = r"model\.0\.layer\.weight: is not among the attached layers: detach, and attach all deltas together"
        with pytest.raises(AttachError, match=match):
            handle.swap(DOG)
        with pytest.raises(AttachError, match=match):
            handle.add("dog", DOG)


def test_deltas_of_different_bases_are_not_attached_together() -> None:
    other = model_of_two()
    other[0].layer.weight.data += 1
    model = model_of_two()
    with pytest.raises(BaseMismatchError, match=r"model\.0\.layer\.weight"):
        attach(model, {"dog": DOG, "odd": random_delta(live_zero(other))})
    assert not hasattr(model[0].layer, "svdiff_shift")


def test_swapping_without_a_name_needs_one_active_delta(attached: tuple[nn.Module, Handle]) -> None:
    _, handle = attached
    with pytest.raises(InputError, match="2 deltas are active: say which one to swap"):
        handle.swap(COW)


def test_nothing_is_attached_twice(attached: tuple[nn.Module, Handle]) -> None:
    model, _ = attached
    with pytest.raises(AttachError, match=r"model\.0\.layer\.weight: has a delta on it already"):
        attach(model, COW)


def test_nothing_at_all_is_not_attached() -> None:
    with pytest.raises(InputError, match="give at least one delta"):
        attach(model_of_two(), {})


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match='"live" or "fused", not \'baked\''):
        attach(model_of_two(), DOG, mode="baked")  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["exact", "trainable"])
def test_a_fused_delta_takes_no_options_of_live_layers(option: str) -> None:
    with pytest.raises(InputError, match=f'`{option}` .*mode="live"'):
        attach(model_of_two(), DOG, mode="fused", **{option: True})  # type: ignore[arg-type]


def test_one_delta_is_trained_at_a_time() -> None:
    with pytest.raises(InputError, match="one delta is trained at a time, 2 were given"):
        attach(model_of_two(), {"dog": DOG, "cat": CAT}, trainable=True)


def test_a_delta_in_training_is_neither_weighted_nor_joined_by_others() -> None:
    with attach(model_of_two(), DOG, trainable=True) as handle:
        for action in (
            lambda: handle.set_adapters("default", 0.5),
            lambda: handle.set_scale(0.5),
            lambda: handle.add("cat", CAT),
            lambda: handle.delete("default"),
        ):
            with pytest.raises(AttachError, match=r"is being trained: attach what `handle\.delta\(\)` returns"):
                action()


def test_a_delta_in_training_can_be_switched_off() -> None:
    model = model_of_two()
    with attach(model, DOG, trainable=True) as handle, torch.no_grad():
        handle.disable()
        assert shows(model)
        handle.enable()
        assert shows(model, DOG)


def test_a_training_can_start_from_another_delta() -> None:
    model = model_of_two()
    with attach(model, DOG, trainable=True) as handle, torch.no_grad():
        handle.swap(CAT)
        assert shows(model, CAT)
        assert {name: values.tolist() for name, values in handle.delta().items()} == {
            n: v.tolist() for n, v in CAT.items()
        }
