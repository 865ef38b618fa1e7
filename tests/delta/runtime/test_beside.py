"""What else is on a model: LoRA, accelerate's hooks, gradient checkpointing; and detaching in the wrong order."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from peft import LoraConfig, get_peft_model_state_dict
from support.live import CASES, delta_of, double_copy, relative, run, tiny
from support.models import base_delta, live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta import select
from svdiff_delta.errors import AttachError
from svdiff_delta.runtime import attach
from svdiff_delta.runtime.attachment import Mode
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny

NAMES = ["UNet", "Stable Diffusion 3", "Flux"]


def load_lora(model: Any) -> None:
    """Put the same random LoRA on attention layers; its weights follow the model's dtype."""
    torch.manual_seed(5)
    targets = ["to_q", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))


def double_lora(model: Any) -> Any:
    """The model in float64 with the LoRA that `load_lora` loads."""
    load_lora(model)
    return model.double()


@pytest.mark.parametrize("mode", ["live", "fused"])
@pytest.mark.parametrize("first", ["LoRA", "delta"])
@pytest.mark.parametrize("name", NAMES)
def test_a_lora_and_a_delta_add_up(name: str, first: str, mode: Any) -> None:
    model, delta = tiny(name), delta_of(name)
    expected = run(double_lora(double_copy(model, delta).float()), name)
    alone = run(double_lora(tiny(name)), name)
    if first == "LoRA":
        load_lora(model)
    with attach(model, delta, mode=mode):
        if first == "delta":
            load_lora(model)
        assert relative(run(model, name), expected) < 2e-5
    assert relative(run(model, name), alone) < 2e-5
    assert relative(alone, expected) > 0.01


@pytest.mark.parametrize("mode", ["live", "fused"])
def test_a_lora_may_be_unloaded_before_the_delta(mode: Any) -> None:
    model, delta = tiny("UNet"), delta_of("UNet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with attach(model, delta, mode=mode):
        expected = run(model, "UNet")
        load_lora(model)
        model.unload_lora()
        assert torch.equal(run(model, "UNet"), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("first", ["LoRA", "delta"])
def test_a_pipeline_loads_and_unloads_a_lora_file_beside_a_delta(tmp_path: Path, first: str) -> None:
    pipeline: Any = load_pipeline(open_tiny())
    donor = copy.deepcopy(pipeline.unet)
    load_lora(donor)
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(donor))
    delta = base_delta(open_tiny(), "unet.*.transformer_blocks.0.*", size=0.5)
    plain = predicted(pipeline)
    if first == "LoRA":
        pipeline.load_lora_weights(tmp_path)
    with attach(pipeline, delta) as handle:
        if first == "delta":
            pipeline.load_lora_weights(tmp_path)
        both = predicted(pipeline)
        handle.disable()
        lora = predicted(pipeline)
        pipeline.unload_lora_weights()
        assert relative(predicted(pipeline), plain) < 1e-5
        assert relative(lora, plain) > 0.01
        assert relative(both, lora) > 1e-3
    assert torch.equal(predicted(pipeline), plain)


def predicted(pipeline: Any) -> Tensor:
    config = pipeline.unet.config
    noise, states = normal(1, config.in_channels, 8, 8), normal(1, 5, config.cross_attention_dim)
    with torch.no_grad():
        return torch.as_tensor(pipeline.unet(noise, 10, states).sample)


def test_a_lora_that_is_fused_over_a_fused_delta_comes_off_first() -> None:
    model = tiny("UNet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    handle = attach(model, delta_of("UNet"), mode="fused")
    load_lora(model)
    model.fuse_lora()
    for action in (handle.detach, lambda: handle.set_scale(0.5)):
        with pytest.raises(AttachError, match=r"model\..*was changed after the delta was fused.*detach\(force=True\)"):
            action()
    assert handle.scale == 1.0
    handle.detach(force=True)
    model.unload_lora()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_forward_that_something_else_has_replaced_keeps_everything_attached() -> None:
    model = nn.Sequential(named(nn.Linear(6, 6)), named(nn.Linear(6, 6)))
    handle = attach(model, random_delta(live_zero(model), size=0.3))
    expected = model(normal(2, 6))
    inside = model[1].layer.forward
    model[1].layer.forward = lambda x: inside(x)
    with pytest.raises(AttachError, match=r"model\.1\.layer\.weight: the layer's forward was replaced"):
        handle.detach()
    assert torch.equal(model(normal(2, 6)), expected)
    model[1].layer.forward = inside
    handle.detach()


@pytest.mark.parametrize("mode", ["live", "fused"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first first", "last first"])
def test_two_handles_on_layers_of_one_model_come_off_in_any_order(mode: Mode, order: tuple[int, int]) -> None:
    model, x = nn.Sequential(named(nn.Linear(6, 6)), named(nn.Linear(6, 6))), normal(2, 6)
    delta, plain = random_delta(live_zero(model), size=0.3), model(x)
    parts = [select(delta, f"model.{index}.*") for index in range(2)]
    handles = [attach(model, part, mode=mode) for part in parts]
    first, last = order
    handles[first].detach()
    left = model(x)
    assert relative(left, plain) > 0.01
    handles[last].detach()
    assert torch.equal(model(x), plain)
    with attach(model, parts[last], mode=mode):
        assert torch.equal(model(x), left)


class Counter(ModelHook):
    """Counts the calls of a layer."""

    calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("hooked", ["before", "after"])
@pytest.mark.parametrize("unhooked", ["before", "after"])
def test_hooks_come_and_go_in_any_order(hooked: str, unhooked: str) -> None:
    model, x = named(nn.Linear(6, 6)), normal(2, 6)
    plain, delta, counter = model(x), random_delta(live_zero(model), size=0.3), Counter()
    if hooked == "before":
        add_hook_to_module(model.layer, counter)
    handle = attach(model, delta)
    if hooked == "after":
        add_hook_to_module(model.layer, counter)
    assert relative(model(x), plain) > 0.01
    assert counter.calls == 1
    if unhooked == "before":
        remove_hook_from_module(model.layer)
        assert relative(model(x), plain) > 0.01
        handle.detach()
    else:
        handle.detach()
        assert torch.equal(model(x), plain)
        assert counter.calls == 2
        remove_hook_from_module(model.layer)
    assert torch.equal(model(x), plain)
    assert "svdiff_shift" not in dict(model.layer.named_modules())


def test_a_model_may_be_offloaded_layer_by_layer_while_a_delta_is_on_it() -> None:
    model = tiny("UNet")
    plain = run(model, "UNet")
    with attach(model, delta_of("UNet")):
        expected = run(model, "UNet")
        accelerate.cpu_offload(model, torch.device("cpu"))
        assert model.conv_in.weight.device.type == "meta"
        assert torch.equal(offloaded(model), expected)
    assert model.conv_in.weight.device.type == "meta"
    assert torch.equal(offloaded(model), plain)


def offloaded(model: Any) -> Tensor:
    """What a model computes whose parameters are brought in layer by layer."""
    return torch.as_tensor(model(**CASES["UNet"].inputs(2)).sample)


def test_a_model_that_moves_as_a_whole_is_offloaded_with_its_delta() -> None:
    model, delta = tiny("UNet"), delta_of("UNet")
    with attach(model, delta):
        expected = run(model, "UNet")
        model, hook = accelerate.cpu_offload_with_hook(model, torch.device("cpu"))
        assert torch.equal(run(model, "UNet"), expected)
        hook.offload()
        assert torch.equal(run(model, "UNet"), expected)
        hook.remove()


def gradients(model: Any, name: str, *, checkpointing: bool) -> dict[str, Tensor]:
    model.train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    with attach(model, delta_of(name), trainable=True) as handle:
        run(model, name).square().sum().backward()
        return {key: torch.as_tensor(value.grad) for key, value in handle.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    expected = gradients(tiny(name), name, checkpointing=False)
    found = gradients(tiny(name), name, checkpointing=True)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_deep_copy_moves_on_its_own() -> None:
    model = named(nn.Linear(6, 6))
    with attach(model, random_delta(live_zero(model), size=0.3)):
        expected = model(normal(2, 6))
        twin = copy.deepcopy(model).double()
        assert relative(twin(normal(2, 6).double()), expected) < 1e-6
        assert model.layer.weight.dtype == torch.float32
        assert torch.equal(model(normal(2, 6)), expected)
