"""Gains of all layers in training: computed at once, with the gradients that each layer alone would give."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from support.live import CASES, delta_of, relative, run, tiny, zero_of
from support.models import live_zero, random_delta
from support.weights import normal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from svdiff_delta import Delta, attach
from svdiff_delta.errors import AttachError
from svdiff_delta.runtime import Handle


class Dispatched(TorchDispatchMode):
    """Count what is dispatched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Many(nn.Module):
    """Layers in a row, some of all kinds, one that no forward calls, and checkpoints if asked for."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([part for _ in range(count) for part in (nn.Linear(6, 6), nn.LayerNorm(6))])
        self.idle = nn.Linear(6, 4)
        self.reentrant: bool | None = None
        for parameter in self.parameters():
            parameter.data = (parameter.data + 0.3 * torch.randn(parameter.shape)).half().float()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = called(layer, x) if self.reentrant is None else self.checkpointed(layer, x)
        return x

    def checkpointed(self, layer: nn.Module, x: Tensor) -> Tensor:
        return torch.as_tensor(checkpoint(called, layer, x, use_reentrant=self.reentrant))


def called(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(layer(x))


def expected(model: Many, delta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The model with U diag(ReLU(σ + δ)) Vᵀ in float64 by an SVD of its own."""
    x = x.double()
    for index, layer in enumerate(model.layers):
        weight, bias = (each.double() for each in (layer.weight, layer.bias))
        shift = delta[f"model.layers.{index}.weight"]
        if isinstance(layer, nn.LayerNorm):
            x = torch.tanh(torch.nn.functional.layer_norm(x, (6,), weight + shift, bias))
        else:
            U, sigma, Vt = torch.linalg.svd(weight, full_matrices=False)
            x = torch.tanh(x @ (U * torch.relu(sigma + shift) @ Vt).T + bias)
    return x


@contextmanager
def training(model: Many, delta: Delta, **options: Any) -> Iterator[Handle]:
    with attach(model, delta, trainable=True, **options) as handle:
        yield handle


def by_name(handle: Handle) -> dict[str, Tensor | None]:
    """Gradients by parameter name, of flat parameters too."""
    places = handle.flat_places()
    if not places:
        return {name: value.grad for name, value in handle.parameters()}
    flats = handle.flat_parameters()
    return {name: None if (grad := flats[kind].grad) is None else grad[part] for name, (kind, part) in places.items()}


def wanted(model: Many, delta: Delta, x: Tensor) -> dict[str, Tensor]:
    values = {name: torch.from_numpy(delta[name].astype("f8")).requires_grad_() for name in delta}
    expected(model, values, x).square().sum().backward()
    return {name: value.grad for name, value in values.items() if value.grad is not None}


def some_dead(model: Many) -> Delta:
    """A δ that brings every third singular value below 0."""
    delta = random_delta(live_zero(model), size=0.3)
    change = {name: value - 9 * (np.arange(len(value)) % 3 == 1) for name, value in delta.items()}
    kinds = {name: parameter.kind for name, parameter in delta.metadata.parameters.items()}
    return Delta({name: change[name] if kinds[name] == "spectral" else delta[name] for name in delta}, delta.metadata)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_of_all_layers_are_those_of_the_formula(flat: bool, exact: bool, reentrant: bool | None) -> None:
    model, x = Many(), normal(5, 6).requires_grad_(reentrant is True)
    model.reentrant = reentrant
    delta = some_dead(model)
    truth = wanted(model, delta, x.detach())
    with training(model, delta, exact=exact) as handle:
        if flat:
            handle.flat_parameters()
        for _ in range(2):  # a second forward in the same step adds its gradients
            model(x).square().sum().backward()
        found = by_name(handle)
        assert handle.untouched() == ["model.idle.weight"]
    for name, grad in truth.items():
        value = found[name]
        assert value is not None
        assert relative(value, 2 * grad) < 2e-5, name
    idle = found["model.idle.weight"]
    assert idle is None or not idle.any()


@pytest.mark.parametrize("flat", [False, True])
def test_tied_and_null_singular_values_have_the_numbers_that_are_free(flat: bool) -> None:
    model, x = Many(), normal(5, 6)
    for index, sigma in ((0, [2.0, 2.0, 1.0, 1.0, 0.5, 0.25]), (2, [3.0, 3.0, 3.0, 1.0, 0.0, 0.0])):
        model.layers[index].weight.data = torch.diag(torch.tensor(sigma))
    delta = random_delta(live_zero(model), size=0.3)
    truth = wanted(model, delta, x)
    runs = {"model.layers.0.weight": [[0, 1], [2, 3], [4], [5]], "model.layers.2.weight": [[0, 1, 2], [3]]}
    with training(model, delta) as handle:
        if flat:
            handle.flat_parameters()
        model(x).square().sum().backward()
        found = by_name(handle)
    for name, grad in truth.items():
        value = torch.as_tensor(found[name])
        free = torch.stack([grad[run].sum() for run in runs.get(name, [[each] for each in range(len(grad))])])
        assert value.shape == free.shape
        assert relative(value, free) < 2e-5, name


def test_one_set_of_gains_can_be_gone_back_through_twice() -> None:
    model, x = Many(), normal(5, 6)
    delta = some_dead(model)
    with training(model, delta) as handle:
        out = model(x)
        (out[:2].square().sum()).backward(retain_graph=True)
        first = {name: value.clone() for name, value in by_name(handle).items() if value is not None}
        (out[2:].square().sum()).backward()
        both = by_name(handle)
    truth = wanted(model, delta, x)
    assert first
    assert all(relative(torch.as_tensor(both[name]), truth[name]) < 2e-5 for name in truth)
    assert not torch.equal(first["model.layers.0.weight"], torch.as_tensor(both["model.layers.0.weight"]))


def test_operations_on_gains_do_not_grow_with_the_layers() -> None:
    """A layer's own are two products with a multiplication between them; here they are written out by hand."""

    class ByHand(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.products = nn.ParameterList(
                [nn.Parameter(normal(6, 6), requires_grad=False) for _ in range(2 * count)]
            )
            self.bias = nn.Parameter(normal(6), requires_grad=False)
            self.gains = nn.ParameterList([nn.Parameter(torch.ones(6)) for _ in range(count)])

        def forward(self, x: Tensor) -> Tensor:
            for index, gain in enumerate(self.gains):
                hidden = torch.nn.functional.linear(x, self.products[2 * index]) * gain.reshape(6)
                x = torch.nn.functional.linear(hidden, self.products[2 * index + 1], self.bias)
            return x

    def dispatched(model: nn.Module, update: Callable[[], object]) -> int:
        x = normal(5, 6)
        for _ in range(2):
            model(x).square().sum().backward()
            update()
        with Dispatched() as counter:
            model(x).square().sum().backward()
            update()
        return sum(counter.found.values())

    def ours(count: int) -> int:
        model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(count)]).requires_grad_(False)
        with attach(model, live_zero(model), trainable=True) as handle:
            optimizer = torch.optim.AdamW(handle.flat_parameters().values(), fused=True)
            return dispatched(model, optimizer.step)

    def by_hand(count: int) -> int:
        return dispatched(ByHand(count), lambda: None)

    ten = 10
    # By hand every gain is a parameter, whose gradient comes in one operation of its own.
    assert (ours(2 + ten) - ours(2)) / ten <= (by_hand(2 + ten) - by_hand(2)) / ten
    assert ours(2) - by_hand(2) < 30


SEPARATELY = 3351
"""What a step of the tiny UNet dispatched beyond the base's when each layer had gains of its own (torch 2.13)."""


def test_a_step_dispatches_a_third_of_what_layers_on_their_own_did() -> None:
    model, inputs = tiny("UNet"), CASES["UNet"].inputs(2)

    def counted(step: Callable[[], object]) -> int:
        step()
        with Dispatched() as counter:
            step()
        return sum(counter.found.values())

    def base() -> None:
        model(**{**inputs, "sample": inputs["sample"].clone().requires_grad_()}).sample.square().sum().backward()

    without = counted(base)
    with attach(model, zero_of("UNet"), trainable=True) as handle:
        flats = list(handle.flat_parameters().values())
        optimizer = torch.optim.AdamW(flats, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            model(**inputs).sample.square().sum().backward()
            torch.nn.utils.clip_grad_norm_(flats, 1.0)
            optimizer.step()

        assert 3 * (counted(step) - without) <= SEPARATELY


@pytest.mark.parametrize("name", CASES)
def test_a_forward_computes_all_gains_once(name: str) -> None:
    model = tiny(name)
    with attach(model, delta_of(name), trainable=True), Dispatched() as counter:
        run(model, name).square().sum().backward()
    with Dispatched() as without:
        run(model, name)
    assert counter.found["le"] - without.found["le"] == 1  # σ + δ ≤ 0


def test_whatever_is_written_between_forwards_is_seen() -> None:
    model, x = Many(), normal(5, 6)
    zero = live_zero(model)
    with training(model, zero) as handle:
        base = model(x)
        values = dict(handle.parameters())
        values["model.layers.0.weight"].data.fill_(0.5)  # which torch does not count as a change
        changed = model(x)
        assert relative(changed, base) > 1e-2
        with torch.no_grad():
            values["model.layers.0.weight"].zero_()
        with torch.no_grad():
            assert torch.equal(model(x), base)
        handle.disable()
        values["model.layers.0.weight"].data.fill_(0.5)
        assert relative(model(x), base) < 1e-6
        handle.enable()
        assert torch.equal(model(x), changed)
        assert torch.equal(model.layers[0](x), nn.Module.__call__(model.layers[0], x))
        alone = model.layers[0](x)
        values["model.layers.0.weight"].data.zero_()
        assert relative(model.layers[0](x), alone) > 1e-2  # a layer that is called without its model


def test_no_gradient_comes_to_what_is_frozen() -> None:
    model, x = Many(), normal(5, 6)
    delta = some_dead(model)
    with training(model, delta) as handle:
        values = dict(handle.parameters())
        values["model.layers.2.weight"].requires_grad_(False)
        model(x).square().sum().backward()
        found = by_name(handle)
    truth = wanted(model, delta, x)
    assert found.pop("model.layers.2.weight") is None
    assert all(relative(grad, truth[name]) < 2e-5 for name, grad in found.items() if grad is not None)


def test_flat_parameters_hold_every_weight_in_its_place_and_move_with_the_model() -> None:
    model, x = Many(), normal(5, 6)
    delta = some_dead(model)
    with training(model, delta) as handle:
        before = model(x)
        flats, places = handle.flat_parameters(), handle.flat_places()
        assert list(flats) == ["spectral", "elementwise"]
        assert sum(len(flat) for flat in flats.values()) == sum(len(value) for value in delta.values())
        for name, (kind, part) in places.items():
            np.testing.assert_array_equal(flats[kind][part].detach().numpy(), delta[name])
        assert {id(value) for value in flats.values()} <= {id(value) for value in model.parameters()}
        assert handle.flat_parameters() == flats
        assert torch.equal(model(x), before)
        with pytest.raises(AttachError, match=r"flat parameters.*use `handle.flat_parameters\(\)`"):
            list(handle.parameters())
        assert all(np.array_equal(handle.delta()[name], delta[name]) for name in delta)
        model.double()
        assert {flat.dtype for flat in flats.values()} == {torch.float64}
        assert relative(model(x.double()), before) < 1e-5
        with torch.no_grad():
            flats["spectral"].zero_()
        assert not handle.delta()["model.layers.0.weight"].any()


def test_one_optimizer_step_is_the_same_whether_numbers_are_flat_or_not() -> None:
    found = []
    for flat in (False, True):
        model, x = Many(), normal(5, 6)
        with training(model, some_dead(model)) as handle:
            values = list(handle.flat_parameters().values()) if flat else [each for _, each in handle.parameters()]
            optimizer = torch.optim.AdamW(values, lr=0.1, fused=flat)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
            found.append(handle.delta())
    for name in found[0].keys() - {"model.idle.weight"}:  # which no gradient reaches, and flat, weight decay does
        # Three updates of at most 0.1, each rounded in a few operations on numbers below 10.
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=0, atol=1e-5)


def test_a_copy_of_the_model_trains_on_its_own() -> None:
    model, x = Many(), normal(5, 6)
    for flat in (False, True):
        with training(model, some_dead(model)) as handle:
            if flat:
                handle.flat_parameters()
            before = model(x)
            twin = copy.deepcopy(model)
            trained = [each for each in twin.parameters() if each.requires_grad]
            assert trained
            assert {id(each) for each in trained}.isdisjoint(id(each) for each in model.parameters())
            twin(x).square().sum().backward()
            assert any(each.grad is not None and bool(each.grad.any()) for each in trained)
            with torch.no_grad():
                for each in trained:
                    each.add_(0.2)
            assert relative(twin(x), before) > 1e-3
            assert torch.equal(model(x), before)


def test_detaching_leaves_no_hook() -> None:
    model = Many()
    with training(model, live_zero(model)):
        assert model._forward_pre_hooks
        assert model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not model._forward_hooks_always_called


def test_threads_may_share_a_model_in_training() -> None:
    model, x = Many(), normal(5, 6)
    with training(model, some_dead(model)):
        truth = model(x)
        found: list[bool] = []

        def work(grad: bool) -> None:
            with torch.set_grad_enabled(grad):
                outputs = [model(x) for _ in range(30)]
            found.append(all(torch.equal(out, truth) and out.requires_grad is grad for out in outputs))

        threads = [threading.Thread(target=work, args=(grad,)) for grad in (True, False, True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 3


def test_gains_made_without_gradients_are_not_taken_where_gradients_are_wanted() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = Many()

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return torch.as_tensor(self.inside(x))

    model = Half()
    with attach(model, live_zero(model), trainable=True) as handle:
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                model.inside(normal(5, 6))
        with torch.no_grad():
            out = model(normal(5, 6))
        out.square().sum().backward()
        grads = [value.grad for _, value in handle.parameters()]
    assert sum(grad is not None for grad in grads) == len(grads) - 1


def test_transforms_of_functions_see_the_plain_operations() -> None:
    model, x = Many(), normal(5, 6)
    delta = some_dead(model)
    with training(model, delta) as handle:
        names = {id(value): name for name, value in handle.parameters()}
        own = {key: value for key, value in model.named_parameters() if id(value) in names}

        def loss(values: Mapping[str, Tensor]) -> Tensor:
            return torch.as_tensor(torch.func.functional_call(model, dict(values), (x,))).square().sum()

        found = torch.func.grad(loss)({key: value.detach() for key, value in own.items()})
        renamed = {names[id(own[key])]: grad for key, grad in found.items()}
    truth = wanted(model, delta, x)
    assert all(relative(renamed[name], truth[name]) < 2e-5 for name in truth)


def test_clipped_shifts_are_counted() -> None:
    model = Many()
    delta = some_dead(model)
    weights = {name: model.get_parameter(name.removeprefix("model.")).numpy() for name in delta}
    sigmas = {name: np.linalg.svd(weight, compute_uv=False) for name, weight in weights.items() if weight.ndim == 2}
    count = sum(int((sigma + delta[name] < 0).sum()) for name, sigma in sigmas.items())
    with training(model, delta) as handle:
        assert handle.clipped_count() == count > 0
        handle.flat_parameters()
        assert handle.clipped_count() == count


def test_nothing_is_joined_of_what_is_not_trained() -> None:
    model = tiny("UNet")
    with attach(model, zero_of("UNet")) as handle:
        assert not handle.flat_parameters()
        assert not handle.flat_places()
        assert handle.clipped_count() == 0
        assert not model._forward_pre_hooks
