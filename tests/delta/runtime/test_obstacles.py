"""What cannot be shifted live is refused by name, before anything is touched."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from support.live import relative, tiny
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.errors import AttachError
from svdiff_delta.ops.select import select
from svdiff_delta.runtime import attach


def wan() -> Any:
    """Cross-attention with keys and values of its own: `fuse_projections` there makes `to_kv`."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "ffn_dim": 32, "freq_dim": 32}
    return diffusers.WanTransformer3DModel(in_channels=4, out_channels=4, text_dim=16, **sizes).requires_grad_(False)


def run_wan(model: Any) -> Tensor:
    x, text = normal(1, 4, 1, 4, 4), normal(1, 5, 16, seed=1)
    return torch.as_tensor(model(hidden_states=x, timestep=torch.tensor([5]), encoder_hidden_states=text).sample)


def unet() -> Any:
    """Stable Diffusion's attention class, whose fusion is older code."""
    return tiny("UNet")


def run_unet(model: Any) -> Tensor:
    return torch.as_tensor(model(normal(1, 4, 8, 8), 7, normal(1, 5, 12, seed=1)).sample)


MODELS = {"Wan": (wan, run_wan, "*.attn2.to_k.weight"), "UNet": (unet, run_unet, "*.attn1.to_q.weight")}
FORMS: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_projection_that_was_fused_before_is_refused(name: str, form: str) -> None:
    build, run, names = MODELS[name]
    model = build()
    delta = random_delta(select(live_zero(model), names))
    model.fuse_qkv_projections()
    plain = run(model)
    message = r"was copied into the fused projection `to_\w+`, which is run in its place: call `unfuse_qkv_projections"
    with pytest.raises(AttachError, match=message):
        attach(model, delta, **FORMS[form])
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_projection_is_not_fused_while_it_has_a_delta(name: str, form: str) -> None:
    build, run, names = MODELS[name]
    model = build()
    plain = run(model)
    with attach(model, random_delta(select(live_zero(model), names), size=0.5), **FORMS[form]):
        expected = run(model)
        with pytest.raises(AttachError, match="has a delta on it, which projections that are fused"):
            model.fuse_qkv_projections()
        assert torch.equal(run(model), expected)
    model.fuse_qkv_projections()
    assert relative(run(model), plain) < 1e-5


def test_layers_beside_fused_projections_are_shifted() -> None:
    model = unet()
    delta = random_delta(select(live_zero(model), "*.to_out.0.weight", "*.attn2.to_q.weight"), size=0.5)
    model.fuse_qkv_projections()
    plain = run_unet(model)
    with attach(model, delta, check=True):
        assert relative(run_unet(model), plain) > 0.01
    assert torch.equal(run_unet(model), plain)


def test_two_deltas_on_one_attention_layer_both_keep_it_from_being_fused() -> None:
    model = unet()
    zero = live_zero(model)
    first = attach(model, random_delta(select(zero, "*.attn1.to_q.weight")))
    second = attach(model, random_delta(select(zero, "*.attn1.to_k.weight")))
    first.detach()
    with pytest.raises(AttachError, match="has a delta on it"):
        model.fuse_qkv_projections()
    second.detach()
    model.fuse_qkv_projections()


class Packed(Tensor):
    """A weight of a class of its own, as quantization libraries make them."""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("torchao.quantization", r"quantized \(torchao: Packed\)"),
        ("optimum.quanto.tensor", r"quantized \(quanto: Packed\)"),
        ("bitsandbytes.nn.modules", r"quantized \(bitsandbytes: Packed\)"),
        ("diffusers.quantizers.gguf.utils", r"quantized \(GGUF: Packed\)"),
        ("nobody.knows", r"quantized \(nobody\.knows: Packed\)"),
    ],
)
def test_a_weight_of_another_class_is_refused_with_the_library_s_name(
    module: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Packed, "__module__", module)
    model = named(nn.Linear(8, 6))
    delta = random_delta(live_zero(model))
    model.layer._parameters["weight"] = model.layer.weight.data.as_subclass(Packed)
    with pytest.raises(AttachError, match=rf"^model\.layer\.weight: the live weight is {words}: load the model in F16"):
        attach(model, delta)


def test_a_weight_stored_in_float8_is_refused_with_the_order_that_works() -> None:
    model = named(nn.Linear(8, 6))
    delta = random_delta(live_zero(model))
    model.to(torch.float8_e4m3fn)
    message = r"the live weight is stored in float8_e4m3fn: attach before `enable_layerwise_casting`"
    with pytest.raises(AttachError, match=message):
        attach(model, delta)


def test_a_layer_without_a_weight_of_its_own_is_not_called_another_model() -> None:
    model = named(nn.Linear(8, 6))
    delta = random_delta(live_zero(model))
    nn.utils.parametrizations.weight_norm(model.layer)
    with pytest.raises(AttachError, match=r"model\.layer\.weight: .* holds no parameter `weight` of its own"):
        attach(model, delta)


def test_a_forward_that_was_replaced_before_is_refused() -> None:
    model = nn.Sequential(named(nn.Linear(6, 6)), named(nn.Linear(6, 6)))
    delta = random_delta(live_zero(model))
    inside = model[1].layer.forward
    model[1].layer.forward = lambda x: inside(x) + 1
    plain = model(normal(2, 6))
    with pytest.raises(AttachError, match=r"model\.1\.layer\.weight: the layer's forward was replaced before"):
        attach(model, delta)
    assert torch.equal(model(normal(2, 6)), plain)
    with attach(model, delta, mode="fused"):
        assert relative(model(normal(2, 6)), plain) > 0.001
