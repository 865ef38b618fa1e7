"""Experts of a stacked weight on live models: what the layer reads is W + ΔW of each, and comes off bit for bit."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.experts import mixture, run
from support.live import double_copy, relative
from support.models import base_delta, live_zero, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta import Delta, attach, bake, handle_of, open_base, select
from svdiff_delta.base_model.experts import held_weights
from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.runtime.shift import Shift

MODES: dict[str, dict[str, Any]] = {
    "live": {},
    "exact": {"exact": True},
    "trained": {"trainable": True},
    "fused": {"mode": "fused"},
}
READS = ("eager", "batched_mm", "grouped_mm")
WAYS = [(name, read) for name in ("Mixtral", "Qwen3Moe", "GptOss") for read in READS]
WAYS += [(name, "eager") for name in ("Llama4", "JetMoe", "NemotronH", "LongcatFlash")]


def experts_of(model: nn.Module, *, size: float = 0.3, seed: int = 0) -> Delta:
    """A random δ on all experts of a model."""
    return random_delta(select(live_zero(model), "experts"), size=size, seed=seed)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def untouched(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    same = after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    return same and not any(
        "svdiff" in key for module in model.modules() for key in (*module.__dict__, *module._modules)
    )


@pytest.mark.parametrize(("name", "read"), WAYS)
def test_experts_compute_with_their_delta_however_they_are_read(name: str, read: str) -> None:
    model = mixture(name, read)
    delta, before, kept = experts_of(model), run(model), state(model)
    expected = run(double_copy(model, delta).float())
    for mode, options in MODES.items():
        with attach(model, delta, **options):
            found = run(model)
        assert relative(found - before, expected - before) < 1e-4, mode
        assert torch.equal(run(model), before)
        assert untouched(model, kept)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_half_precision_and_a_cast_that_comes_later(name: str) -> None:
    model = mixture(name).bfloat16()
    delta, before = experts_of(model, size=1.0), run(model).float()
    expected = run(double_copy(model, delta).float())
    with attach(model, delta):
        assert relative(run(model).float() - before, expected - before) < 0.1
    wide = mixture(name)
    with attach(wide, experts_of(wide, size=1.0)):
        wide.bfloat16()
        assert relative(run(wide).float() - before, expected - before) < 0.1


@pytest.mark.parametrize("name", ["Qwen3Moe", "GptOss"])
def test_gradients_come_to_each_expert_as_from_a_model_in_float64(name: str) -> None:
    model = mixture(name)
    delta = experts_of(model)
    handle = attach(model, delta, trainable=True)
    run(model).square().sum().backward()
    parameters = dict(handle.parameters())
    assert handle.untouched() == []
    step, key = 1e-3, [*delta][1]
    shift = delta[key].copy()
    ends = []
    for sign in (1, -1):
        moved = Delta(
            {**dict(delta), key: shift + sign * step * (torch.arange(len(shift)) == 0).numpy()}, delta.metadata
        )
        ends.append(float(run(double_copy(mixture(name), moved).float()).double().square().sum()))
    grad = parameters[key].grad
    assert grad is not None
    assert float(grad[0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=0.02)
    handle.detach()


def test_one_expert_alone_leaves_the_others_bit_for_bit() -> None:
    model = mixture("Qwen3Moe")
    delta = experts_of(model)
    name = next(each for each in delta if each.endswith("down_proj[1]"))
    layer = model.model.layers[0].mlp.experts
    own = layer.down_proj.detach().clone()
    with attach(model, select(delta, name)):
        read = torch.stack([layer.down_proj[index] for index in range(3)])
        assert torch.equal(read[[0, 2]], own[[0, 2]])
        assert not torch.equal(read[1], own[1])
        assert torch.equal(layer.down_proj[torch.tensor(1)], read[1])
        assert torch.equal(layer.down_proj[-2], read[1])
        assert torch.equal(layer.down_proj[1:], read[1:])
        assert torch.equal(layer.down_proj.transpose(1, 2), read.transpose(1, 2))
        assert layer.down_proj.shape == own.shape
        assert torch.equal(layer.gate_up_proj, layer._parameters["gate_up_proj"])
        with pytest.raises(AttachError, match=r"weight cannot be written to|nothing can be written"):
            layer.down_proj.zero_()
    assert torch.equal(layer.down_proj, own)


@pytest.mark.parametrize("mode", ["live", "fused"])
def test_deltas_are_swapped_weighed_and_turned_off(mode: Any) -> None:
    model = mixture("Mixtral")
    dog, cat = experts_of(model), experts_of(model, seed=1)
    before = run(model)
    expected = run(double_copy(model, cat).float())
    with attach(model, dog, mode=mode) as handle:
        handle.swap(cat)
        assert relative(run(model) - before, expected - before) < 1e-4
        handle.disable()
        assert torch.equal(run(model), before)
        handle.enable()
        assert handle_of(model) is handle
        assert {*handle.delta()} == {*cat}


def test_a_second_delta_is_refused_while_one_is_on() -> None:
    model = mixture("Mixtral")
    delta = experts_of(model)
    names = [*delta]
    with attach(model, select(delta, names[0])):
        with pytest.raises(AttachError, match="has a delta on it already"):
            attach(model, delta)
        with attach(model, select(delta, names[1])):
            assert len(held_weights(model)) == 2
    assert held_weights(model) == []


def test_a_copy_of_a_model_keeps_its_delta_and_the_original_does_not_need_it() -> None:
    model = mixture("Mixtral")
    delta = experts_of(model)
    handle = attach(model, delta)
    shifted = run(model)
    twin = copy.deepcopy(model)
    handle.detach()
    assert torch.equal(run(twin), shifted)
    with pytest.raises(AttachError, match="has a delta on it already"):
        attach(twin, delta)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_the_check_passes_and_is_over_after_one_forward(options: dict[str, Any]) -> None:
    model = mixture("GptOss")
    with attach(model, experts_of(model), check=True, **options):
        run(model)
    assert untouched(model, state(mixture("GptOss")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["GptOss", "Mixtral", "JetMoe"])
def test_the_check_names_an_expert_whose_weight_is_no_w_and_delta_w(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixture(name).to(dtype)
    delta = experts_of(model)
    with attach(model, delta, check=True):
        wrong = next(module for module in model.modules() if isinstance(module, Shift) and module.name.endswith("[1]"))
        before = type(wrong).weight

        def half(self: Any, module: Any, gain: Tensor) -> Tensor:
            return before(self, module, gain * 0.5 if self is wrong else gain)

        monkeypatch.setattr(type(wrong), "weight", half)
        with pytest.raises(AttachError, match=rf"{re.escape(wrong.name)}: what the model reads as its weight is no W"):
            run(model)


class Bypassed(nn.Module):
    """Goes past its experts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return normal(2, 2)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_the_check_names_experts_that_nobody_reads(options: dict[str, Any]) -> None:
    model = Bypassed(mixture("Mixtral"))
    missed = pytest.raises(AttachError, match=r"down_proj\[0\]: the forward has neither called this layer nor read")
    with attach(model, experts_of(model), check=True, **options), missed:
        model()


def test_experts_that_no_token_goes_to_are_no_fault() -> None:
    model = mixture("Mixtral")
    model.config.num_experts_per_tok = 1
    for module in model.modules():
        if hasattr(module, "top_k"):
            module.top_k = 1
    with attach(model, experts_of(model), check=True):
        model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False)


def test_what_cannot_be_is_refused_by_name() -> None:
    model = mixture("Mixtral")
    delta = experts_of(model)
    with pytest.raises(AttachError, match=r"down_proj\[0\]: the form \"factored\" cannot serve it"):
        attach(model, delta, form="factored")
    shared = pytest.raises(InputError, match="reads this weight without calling its layer, so all samples share it")
    with attach(model, {"dog": delta}) as handle, handle.per_sample(["dog", None]), shared:
        run(model)
    said = delta.metadata
    far = {name.replace("[1]", "[7]"): parameter for name, parameter in said.parameters.items()}
    beyond = Delta({name.replace("[1]", "[7]"): delta[name] for name in delta}, replace(said, parameters=far))
    with pytest.raises(AttachError, match=r"down_proj\[7\]: the model has 2 experts there, of shape \[16, 24\]"):
        attach(model, beyond)


@pytest.mark.parametrize("mode", ["live", "fused"])
def test_other_weights_cannot_be_loaded_while_a_delta_is_on(mode: Any) -> None:
    model = mixture("Mixtral")
    kept = state(model)
    with attach(model, experts_of(model), mode=mode):
        other = {key: value + 1 for key, value in kept.items()}
        with pytest.raises(AttachError, match="a weight cannot be loaded while a delta is on it"):
            model.load_state_dict(other)
        model.load_state_dict(model.state_dict())
    model.load_state_dict(other)
    model.load_state_dict(kept)
    assert untouched(model, kept)


def saved(folder: Path, name: str, *, stacked: bool) -> Any:
    mixture(name).save_pretrained(folder, save_original_format=not stacked)
    return open_base(folder)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("mode", MODES)
def test_experts_that_stand_one_by_one_in_the_file_are_parts_of_the_live_stack(
    tmp_path: Path, name: str, mode: str
) -> None:
    base = saved(tmp_path / "base", name, stacked=False)
    delta = base_delta(base, "experts", size=0.3)
    assert not any(each.endswith("]") for each in delta)
    baked = bake(base, [delta], tmp_path / "baked")
    model = transformers.AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    expected = run(transformers.AutoModelForCausalLM.from_pretrained(baked.path, dtype=torch.float32))
    before, kept = run(model), state(model)
    for given in (base, None):
        with attach(model, delta, base=given, **MODES[mode]):
            assert relative(run(model) - before, expected - before) < 1e-4
        assert torch.equal(run(model), before)
        assert untouched(model, kept)


def test_names_of_the_file_and_of_the_stack_cannot_both_shift_an_expert(tmp_path: Path) -> None:
    model = mixture("Mixtral")
    whole = select(experts_of(model), "*down_proj[[]0]")
    base = saved(tmp_path, "Mixtral", stacked=False)
    part = base_delta(base, "*experts.0.w2.weight")
    with pytest.raises(AttachError, match="shifts the same weight as"):
        attach(model, {"whole": whole, "part": part})


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_a_model_from_a_stacked_file_takes_the_delta_of_that_file(tmp_path: Path, name: str) -> None:
    base = saved(tmp_path / "base", name, stacked=True)
    delta = base_delta(base, size=0.3)
    assert any(each.endswith("]") for each in delta)
    baked = bake(base, [delta], tmp_path / "baked")
    model = transformers.AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    before = run(model)
    expected = run(transformers.AutoModelForCausalLM.from_pretrained(baked.path, dtype=torch.float32))
    with attach(model, delta):
        assert relative(run(model) - before, expected - before) < 1e-4
    with attach(model, delta, mode="fused") as handle:
        assert relative(run(model) - before, expected - before) < 1e-4
        model.model.layers[0].mlp.experts.down_proj.data[1] += 1
        with pytest.raises(AttachError, match=r"down_proj\[1\]: the weight was changed after the delta was fused"):
            handle.detach()
        handle.detach(force=True)
    assert torch.equal(run(model), before)
