"""Weights that a forward reads without calling their layer: whoever reads one gets W + ΔW."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.live import double_copy, relative
from support.models import live_zero, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import attach


class Gated(nn.Module):
    """A depthwise convolution whose weight goes to a function, as in gated language models."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, groups=6, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.conv.weight.squeeze(1).unsqueeze(1), self.conv.bias, padding=2, groups=6)


class Pool(nn.Module):
    """Attention in one function that takes all projections' weights, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        found, _ = F.multi_head_attention_forward(
            query=x,
            key=x,
            value=x,
            embed_dim_to_check=8,
            num_heads=2,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            need_weights=False,
        )
        return found


class Product(nn.Module):
    """A layer's weight as one factor of a product, with a method and an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.t() + self.layer.weight.sum() * self.layer.bias


class Normed(nn.Module):
    """A norm's weight that another function multiplies by."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (8,), self.norm.weight) + self.norm.bias


class Tied(nn.Module):
    """Embeddings that the output reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.embed(ids), self.embed.weight)


MODELS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "gated convolution": (Gated, normal(2, 6, 9)),
    "attention in one function": (Pool, normal(4, 2, 8)),
    "product": (Product, normal(3, 8)),
    "norm": (Normed, normal(3, 8)),
    "tied embeddings": (Tied, torch.tensor([[1, 4, 10], [0, 2, 2]])),
}
FORMS: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


def built(name: str) -> tuple[Any, Tensor, Delta]:
    torch.manual_seed(3)
    cls, x = MODELS[name]
    model = cls().requires_grad_(False).eval()
    for parameter in model.parameters():  # float16 holds them exactly, so that the Z form's ΔW is the protocol's
        parameter.data = parameter.data.half().float()
    return model, x, random_delta(live_zero(model, on_request=name == "tied embeddings"), size=0.4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_weight_that_is_read_has_the_delta_in_it(name: str, form: str) -> None:
    model, x, delta = built(name)
    plain, wide = model(x), x.double() if x.is_floating_point() else x
    expected = double_copy(model, delta)(wide)
    assert relative(plain, expected) > 0.05
    with attach(model, delta, check=True, **FORMS[form]):
        assert relative(model(x), expected) < 1e-5
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_a_delta_whose_weight_is_read(name: str) -> None:
    model, x, delta = built(name)
    double = model.double() if x.is_floating_point() else model
    x = x.double() if x.is_floating_point() else x
    with attach(double, delta, trainable=True) as handle:
        double(x).square().sum().backward()
        found = {key: value.grad for key, value in handle.parameters()}
        assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in found.values())
        # A step along one coordinate changes the loss by the gradient, to second order.
        key, value = next(iter(handle.parameters()))
        step, losses = 1e-3, []
        for sign in (1, -1):
            with torch.no_grad():
                value[0] += sign * step
                losses.append(float(double(x).square().sum()))
                value[0] -= sign * step
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(torch.as_tensor(found[key])[0]) == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_samples_with_deltas_of_their_own_are_refused_where_a_weight_is_read() -> None:
    model, x, delta = built("gated convolution")
    refused = pytest.raises(InputError, match=r"model\.conv\.weight: the model reads this weight without calling")
    with attach(model, {"a": delta}) as handle, handle.per_sample(["a", None]), refused:
        model(x)


def test_what_only_asks_about_a_weight_puts_nothing_together() -> None:
    model, _, delta = built("product")
    with attach(model, delta):
        weight = model.layer.weight
        shift = model.layer.svdiff_shift
        shift.read_weight = None  # whoever puts it together calls this
        assert (weight.shape, weight.dtype, weight.device.type) == ((5, 8), torch.float32, "cpu")
        assert (weight.ndim, weight.numel(), len(weight), weight.size(1)) == (2, 40, 5, 8)
        assert not weight.requires_grad
        assert isinstance(weight, nn.Parameter)
        assert weight.data.dtype == torch.float32


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.data.add_(1),
        lambda weight: weight.data.copy_(torch.zeros(5, 8)),
        lambda weight: weight.__iadd__(1),
        lambda weight: weight.data.__setitem__(0, 1),
        lambda weight: torch.add(torch.zeros(5, 8), 1, out=weight.data),
        lambda weight: setattr(weight, "data", torch.zeros(5, 8)),
        lambda weight: nn.init.zeros_(weight),
    ],
    ids=["add_", "copy_", "+=", "item", "out=", "data", "init"],
)
@pytest.mark.parametrize("exact", [False, True])
def test_nothing_can_be_written_into_the_weight_of_a_shifted_layer(write: Any, exact: bool) -> None:
    model, x, delta = built("product")
    plain = model(x)
    with attach(model, delta, exact=exact):
        expected = model(x)
        with pytest.raises(AttachError, match="written"):
            write(model.layer.weight)
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), plain)


def test_a_weight_that_was_read_while_a_delta_was_attached_is_not_used_afterwards() -> None:
    model, x, delta = built("product")
    with attach(model, delta):
        weight = model.layer.weight
    with pytest.raises(AttachError, match="was read while a delta was attached, which is off now: read it again"):
        x @ weight.t()
    assert type(model.layer) is nn.Linear
    assert type(model.layer.weight) is nn.Parameter


def test_code_that_gets_past_torch_s_dispatch_meets_nan() -> None:
    model, _, delta = built("product")
    with attach(model, delta, exact=True), torch._C.DisableTorchFunctionSubclass():
        assert bool(torch.isnan(model.layer.weight.sum()))


def test_a_dropped_weight_is_read_as_it_acts() -> None:
    model, _, delta = built("product")
    expected = dict(double_copy(model, delta).named_parameters())["layer.weight"].numpy()
    with attach(model, delta):
        np.testing.assert_allclose(model.layer.weight.detach().numpy(), expected, atol=1e-6)
