"""Deltas on quantized live models: every scheme computes W̃ + ΔW, and its weight is neither touched nor kept whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import base_delta
from support.quantized import IDS, QUANTIZE, bits, case, gguf_utils, quantized, relative, run, shifted_copy
from support.weights import normal
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.arithmetic import scale
from svdiff_delta.runtime import attach
from svdiff_delta.runtime.layer_calls import own_output
from svdiff_delta.runtime.quantized import gguf, plain_weight, quantized_weight

pytestmark = pytest.mark.quantized

CLOSE = 2e-5
"""Sums of up to 96 terms in float32, through ten layers; GGUF unpacks into float16, its own reader into float32."""

FLOAT16 = 4e-3
"""Two roundings to float16 of each of a weight's values, through ten layers."""


def tolerance(scheme: str) -> float:
    """How far a scheme's own arithmetic may be from float64; bitsandbytes multiplies in half precision inside."""
    return FLOAT16 if scheme.startswith(("GGUF", "bitsandbytes")) else CLOSE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture
def model(folder: Path) -> Any:
    return case(folder)[0]


@pytest.fixture
def base(folder: Path) -> Base:
    return case(folder)[1]


@pytest.fixture
def delta(folder: Path) -> Delta:
    return case(folder)[2]


def linears(packed: nn.Module, delta: Delta) -> dict[str, nn.Module]:
    return {name: packed.get_submodule(name.partition(".")[2].removesuffix(".weight")) for name in delta}


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_quantized_model_computes_with_its_delta_and_is_untouched_afterwards(
    scheme: str, model: Any, base: Base, delta: Delta
) -> None:
    packed = quantized(model, scheme)
    plain, before = run(packed), [bits(module) for module in linears(packed, delta).values()]
    with attach(packed, delta, base=base, form="resident", check=True):
        found = run(packed)
    expected = run(shifted_copy(model, packed, delta))
    assert relative(found, plain) > 0.05
    assert relative(found, expected) < tolerance(scheme)
    assert torch.equal(run(packed), plain)
    assert [bits(module) for module in linears(packed, delta).values()] == before


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_quantized_layer_is_called_what_its_users_call_it(scheme: str, model: Any, delta: Delta) -> None:
    for module in linears(quantized(model, scheme), delta).values():
        found = quantized_weight(module)
        assert found is not None
        assert found.scheme == scheme
        assert found.nbytes < 0.6 * 4 * module.in_features * module.out_features  # type: ignore[operator]


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_deltas_are_swapped_and_weighed_on_quantized_layers(scheme: str, model: Any, base: Base, delta: Delta) -> None:
    packed = quantized(model, scheme)
    plain = run(packed)
    with attach(packed, scale(delta, -0.5), base=base, form="resident") as handle:
        handle.swap(delta)
        swapped = run(packed)
        handle.set_scale(0.0)
        assert torch.equal(run(packed), plain)
    with attach(packed, delta, base=base, form="resident"):
        assert torch.equal(run(packed), swapped)


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_every_sample_of_a_batch_has_its_own_delta_on_quantized_layers(
    scheme: str, model: Any, base: Base, delta: Delta
) -> None:
    packed = quantized(model, scheme)
    with attach(packed, {"a": delta, "b": scale(delta, -0.5)}, base=base, form="resident") as handle:
        with handle.per_sample(["a", None, "b"]):
            together = run(packed)
        for index, weights in enumerate([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]):
            handle.set_adapters(["a", "b"], weights)
            assert relative(together[index], run(packed, IDS[index : index + 1])[0]) < CLOSE


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_gradients_of_a_delta_on_quantized_layers_are_those_of_the_formula(
    scheme: str, model: Any, base: Base, delta: Delta
) -> None:
    packed = quantized(model, scheme)
    with attach(packed, delta, base=base, form="resident", trainable=True) as handle:
        run(packed).square().mean().backward()
        found = {name: shift.grad for name, shift in handle.parameters()}
    shifts = {name: torch.from_numpy(delta[name].astype(np.float64)).requires_grad_() for name in delta}
    run(shifted_copy(model, packed, delta, shifts)).square().mean().backward()
    for name, shift in shifts.items():
        gradient = found[name]
        assert gradient is not None
        assert shift.grad is not None
        assert relative(gradient, shift.grad) < 2 * tolerance(scheme)


@pytest.mark.parametrize("scheme", ["torchao int8", "quanto qint4", "GGUF Q4_0"])
def test_a_delta_is_trained_on_a_quantized_model_in_half_precision(
    scheme: str, model: Any, base: Base, delta: Delta
) -> None:
    packed = quantized(model, scheme, torch.bfloat16)
    with attach(packed, scale(delta, 0), base=base, trainable=True) as handle:
        optimizer = torch.optim.SGD([shift for _, shift in handle.parameters()], lr=0.5)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = run(packed).float().square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        learned = handle.delta()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    with attach(packed, learned, base=base):
        assert float(run(packed).float().square().mean()) < losses[-1]


class Watch(TorchDispatchMode):
    """Notes the memory of every floating-point result that is as large as a weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.seen = size, [StorageWeakRef(torch.empty(0).untyped_storage())]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            type(result) is Tensor
            and result.is_floating_point()
            and result.itemsize > 1
            and result.numel() >= self.size
        ):
            self.seen.append(StorageWeakRef(result.untyped_storage()))
        return result

    @property
    def alive(self) -> int:
        return sum(not each.expired() for each in self.seen)


def kept(packed: Any, size: int, held: list[Tensor]) -> int:
    """How many results as large as a weight are there after a forward whose gradients are still to come."""
    own = {tensor.untyped_storage()._cdata for tensor in held}
    with Watch(size) as watch:
        loss = run(packed, IDS[:1]).square().mean()
    watch.seen = [each for each in watch.seen if each.cdata not in own]
    found = watch.alive
    if loss.requires_grad:
        loss.backward()
    return found


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("scheme", QUANTIZE)
def test_no_dequantized_weight_is_left_after_its_layer_was_called(
    scheme: str, train: bool, model: Any, base: Base
) -> None:
    packed, everywhere = quantized(model, scheme), base_delta(base, "*_proj.weight", size=0.3)
    with attach(packed, everywhere, base=base, form="resident", trainable=train):
        assert kept(packed, 64 * 64, [each for each in packed.buffers() if type(each) is Tensor]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", [scheme for scheme in QUANTIZE if scheme.startswith("GGUF")])
def test_gguf_is_unpacked_piece_by_piece_to_what_its_layer_multiplies_by(
    scheme: str, dtype: torch.dtype, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "PIECE", 1000)
    module = quantized(model, scheme, dtype).model.layers[0].mlp.up_proj
    whole, stored = gguf_utils.dequantize_gguf_tensor(module.weight), quantized_weight(module)
    assert torch.equal(plain_weight(module), whole.to(dtype))
    assert stored is not None
    assert torch.equal(stored.dequantize(), whole.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", [scheme for scheme in QUANTIZE if "casting" not in scheme])  # done around a call
def test_a_layer_s_output_and_that_of_a_change_are_those_of_two_calls(
    scheme: str, dtype: torch.dtype, model: Any
) -> None:
    module = quantized(model, scheme, dtype).model.layers[0].self_attn.q_proj
    x, change = (normal(5, 64, seed=seed).to(dtype).requires_grad_() for seed in (3, 4))
    found = own_output(module, x, change=change)
    apart = own_output(module, x) + own_output(module, change, bias=False)
    assert torch.equal(found, apart)
    assert torch.equal(own_output(module, x), module(x))
    target = normal(5, 64, seed=5).to(dtype)
    for one, other in zip(
        torch.autograd.grad(found, [x, change], target), torch.autograd.grad(apart, [x, change], target), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("path", ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])
def test_a_training_step_unpacks_a_gguf_weight_once_each_way(
    path: str, model: Any, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = quantized(model, "GGUF Q4_0", torch.bfloat16)
    alone, calls = base_delta(base, f"*.0.{path}.weight", size=0.3), 0
    unpack = gguf_utils.dequantize_gguf_tensor

    def counted(weight: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return unpack(weight)

    with attach(packed, alone, base=base, form="resident", trainable=True):
        layer = packed.model.layers[0].get_submodule(path)
        monkeypatch.setattr(gguf_utils, "dequantize_gguf_tensor", counted)
        layer(normal(5, layer.in_features).bfloat16().requires_grad_()).float().sum().backward()
    assert calls == 2


def test_what_torch_keeps_of_a_layer_s_own_forward_is_what_the_test_above_would_find(model: Any) -> None:
    packed = quantized(model, "GGUF Q4_0")
    packed.model.embed_tokens.weight.requires_grad_()
    assert kept(packed, 64 * 64, []) > 0


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_quantized_layer_without_its_unquantized_base_is_refused(scheme: str, model: Any, delta: Delta) -> None:
    packed = quantized(model, scheme)
    plain = run(packed)
    message = rf"the live weight is quantized \({scheme}\), and δ .* name the unquantized base, as in `attach\("
    with pytest.raises(AttachError, match=message):
        attach(packed, delta)
    assert torch.equal(run(packed), plain)


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_base_that_is_not_what_was_quantized_is_refused(scheme: str, model: Any, base: Base, delta: Delta) -> None:
    tuned = quantized(model, scheme)  # its memory is written to in no other test
    name, path = "model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj"
    other = quantized(moved(model, path), scheme)
    tuned.get_submodule(path)._parameters["weight"] = other.get_submodule(path)._parameters["weight"]
    with pytest.raises(AttachError, match=rf"{name}: the live weight is not the base's, quantized \({scheme}\)"):
        attach(tuned, delta, base=base)


def moved(model: Any, path: str) -> Any:
    """The model after a fine-tuning that moved one weight by a tenth."""
    twin = copy.deepcopy(model)
    weight = twin.get_submodule(path).weight
    weight.data += 0.1 * weight.std() * torch.randn(weight.shape)
    return twin


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_nothing_is_fused_into_a_quantized_weight(scheme: str, model: Any, base: Base, delta: Delta) -> None:
    message = rf"quantized \({scheme}\), nothing can be fused into it: use `mode=\"live\"`"
    with pytest.raises(AttachError, match=message):
        attach(quantized(model, scheme), delta, base=base, mode="fused")


@pytest.mark.parametrize("form", ["factored", "whole"])
def test_a_form_that_needs_another_weight_cannot_serve_a_quantized_layer(
    form: Any, model: Any, base: Base, delta: Delta
) -> None:
    message = rf'the form "{form}" cannot serve it: its weight is quantized \(GGUF Q4_0\).*"additive", "resident"$'
    with pytest.raises(AttachError, match=message):
        attach(quantized(model, "GGUF Q4_0"), delta, base=base, form=form)


@pytest.mark.parametrize("scheme", ["torchao int8", "quanto qint8", "GGUF Q8_0"])
def test_exact_deltas_are_those_of_the_unquantized_base(scheme: str, model: Any, base: Base, delta: Delta) -> None:
    packed = quantized(model, scheme)
    with attach(packed, delta, base=base, exact=True, check=True):
        found = run(packed)
    exact = shifted_copy(model, packed, delta)
    for name in delta:
        path = name.partition(".")[2].removesuffix(".weight")
        layer, original = exact.get_submodule(path), model.get_submodule(path).weight.double()
        U, sigma, Vt = torch.linalg.svd(original, full_matrices=False)
        change = U * torch.maximum(torch.from_numpy(delta[name].astype(np.float64)), -sigma) @ Vt
        layer.weight = quantized_values(packed, path) + change
    assert relative(found, run(exact)) < tolerance(scheme)


def quantized_values(packed: nn.Module, path: str) -> Tensor:
    found = quantized_weight(packed.get_submodule(path))
    assert found is not None
    return found.dequantize().double()


@pytest.mark.parametrize("scheme", ["torchao int8", "quanto qint8", "GGUF Q4_0"])
def test_a_quantized_weight_is_not_replaced_while_a_delta_is_on_it(
    scheme: str, model: Any, base: Base, delta: Delta
) -> None:
    packed = quantized(model, scheme)
    state = packed.state_dict()
    with attach(packed, delta, base=base), pytest.raises(AttachError, match="cannot be loaded while a delta is on it"):
        packed.load_state_dict(state)
