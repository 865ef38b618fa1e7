"""The only shifted layers there are: two products in the Z or additive form, a whole weight, or a norm."""

from __future__ import annotations

import copy
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_delta.basis import Basis, matricize, unmatricize
from svdiff_delta.kinds import NORMS
from svdiff_delta.parameter import Parameter, free_index
from svdiff_delta.prepare import Prepared

from . import products
from .originals import device_of

HALF: Final = (torch.float16, torch.bfloat16)


class Shift(nn.Module):
    """δ of one parameter as a live model holds it: the numbers that are free, in float32.

    One number stands for a tied run and none for a null singular value, so whatever a trainer does to them, δ stays
    projected (spec, section 6.4).

    Args:
        parameter: what the delta file says.
        trainable: whether `value` is a parameter that takes gradients.
    """

    value: Tensor
    spread: Tensor | None

    def __init__(self, parameter: Parameter, *, trainable: bool) -> None:
        super().__init__()
        index = free_index(parameter)
        count = parameter.size if index is None else int(index.max()) + 1
        self.register_buffer("spread", None if index is None else torch.from_numpy(index), persistent=False)
        value = torch.zeros(count)
        if trainable:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value, persistent=False)
        self.trainable: Final = trainable

    def full(self) -> Tensor:
        """Return δ (size,) with every tied and null entry in its place."""
        if self.spread is None:
            return self.value
        return F.pad(self.value, (1, 0))[self.spread + 1]  # index -1 reads the 0 put in front

    def gather(self, shift: Tensor) -> Tensor:
        """Return the free numbers of a projected δ (size,)."""
        if self.spread is None:
            return shift
        free = torch.zeros_like(self.value, dtype=shift.dtype)
        kept = self.spread >= 0
        free[self.spread[kept]] = shift[kept]
        return free

    def load(self, shift: Tensor) -> None:
        """Take over a projected δ (size,) in float64."""
        with torch.no_grad():
            self.value.copy_(self.gather(shift))

    def call(self, module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Return the shifted layer's output."""
        raise NotImplementedError


class SpectralShift(Shift):
    """A linear layer or convolution as `outer(inner(x) ⊙ s)`, where s is affine in Δσ = max(δ, −σ).

    Z form (design: `y = U (g ⊙ Z x) + U_t (Δσ_t ⊙ V_t x)`): the products are Z = UᵀW and U (or Vᵀ and WV where V is the
    square factor), with the tail's own rows below them; s is 1 + Δσ/σ, 1 on tail and null rows, and Δσ on the tail's
    own rows. Additive form (`y = W x + U (Δσ ⊙ Vᵀ x)`): the products are Vᵀ and U, s is Δσ, and the layer's own output
    is added.

    Args:
        module: the layer.
        prepared: its weight, rounded, with its basis.
        exact: whether to use the additive form.
        trainable: as in `Shift`.
    """

    sigma: Tensor
    gain: Tensor
    inner: Tensor
    outer: Tensor
    offset: Tensor
    slope: Tensor
    pick: Tensor | None

    def __init__(self, module: nn.Module, prepared: Prepared, *, exact: bool, trainable: bool) -> None:
        super().__init__(prepared.parameter, trainable=trainable)
        basis = cast("Basis", prepared.basis)
        weight = cast("Tensor", module.weight)
        self.keeps_weight: Final = exact
        rows, columns, offset, slope, pick = _additive(prepared, basis) if exact else _factored(prepared, basis)
        inner, outer = products.product_weights(module, prepared.parameter, rows, columns)
        device = device_of(module)
        self.register_buffer("inner", inner.to(device, weight.dtype), persistent=False)
        self.register_buffer("outer", outer.to(device, weight.dtype), persistent=False)
        self.register_buffer("sigma", basis.sigma.float(), persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("slope", slope, persistent=False)
        self.register_buffer("pick", pick, persistent=False)
        self.register_buffer("gain", offset.clone(), persistent=False)
        self.to(device)

    def gains(self) -> Tensor:
        """Return s (R,) float32; where σ + δ < 0 it does not depend on δ, as under the paper's ReLU."""
        delta = self.full()
        change = torch.where(delta > -self.sigma, delta, -self.sigma)
        return self.offset + self.slope * (change if self.pick is None else change[self.pick])

    def load(self, shift: Tensor) -> None:
        """Take over a projected δ (size,) in float64, and write s."""
        super().load(shift)
        with torch.no_grad():
            self.gain.copy_(self.gains())

    def call(self, module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Return the shifted layer's output."""
        gain = products.channels_first(module, self.gains() if self.trainable else self.gain)
        hidden = products.inner(module, self.inner, x, *args)
        hidden = (hidden * gain).to(hidden.dtype)  # in float32, whatever the model's dtype
        if not self.keeps_weight:
            return products.outer(module, self.outer, hidden)
        return products.outer(module, self.outer, hidden) + _without_bias(module, x, *args)


def _without_bias(module: nn.Module, x: Tensor, *args: Any) -> Tensor:
    return products.inner(module, cast("Tensor", module.weight), x, *args)


def _additive(prepared: Prepared, basis: Basis) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    long = basis.long_rows(matricize(prepared.rounded, prepared.parameter.axis))
    rows, columns = (long, basis.factor.T) if basis.left else (basis.factor, long.T)
    return rows, columns, torch.zeros(len(rows)), torch.ones(len(rows)), None


def _factored(prepared: Prepared, basis: Basis) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return inner rows, outer columns, and the affine map from Δσ to s, of the Z form."""
    matrix = matricize(prepared.weight, prepared.parameter.axis).float()
    start, stop = basis.split
    count = basis.sigma.numel()
    offset, slope = torch.ones(count), torch.zeros(count)
    slope[:start] = (1.0 / basis.sigma[:start]).float()
    tail = basis.factor[start:stop]
    if basis.left:
        rows, columns = basis.factor @ matrix, basis.factor.T
        extra_rows, extra_columns = basis.tail, tail.T
    else:
        rows, columns = basis.factor, matrix @ basis.factor.T
        extra_rows, extra_columns = tail, basis.tail.T
    if start == stop:
        return rows, columns, offset, slope, None
    pick = torch.cat([torch.arange(count), torch.arange(start, stop)])
    offset = torch.cat([offset, torch.zeros(stop - start)])
    slope = torch.cat([slope, torch.ones(stop - start)])
    return torch.cat([rows, extra_rows]), torch.cat([columns, extra_columns], dim=1), offset, slope, pick


class WholeShift(Shift):
    """A layer that no two products stand for (grouped convolutions): W + ΔW is put together in the layer's shape."""

    def __init__(self, module: nn.Module, prepared: Prepared, *, trainable: bool) -> None:
        super().__init__(prepared.parameter, trainable=trainable)
        rows, columns, _, _, _ = _additive(prepared, cast("Basis", prepared.basis))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("sigma", cast("Basis", prepared.basis).sigma.float(), persistent=False)
        self.parameter: Final = prepared.parameter
        self.to(device_of(module))

    def call(self, module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Return the shifted layer's output."""
        sigma, delta = cast("Tensor", self.sigma), self.full()
        change = torch.where(delta > -sigma, delta, -sigma)
        matrix = (cast("Tensor", self.columns) * change) @ cast("Tensor", self.rows)
        weight = cast("Tensor", module.weight)
        whole = weight + unmatricize(matrix, self.parameter.shape, self.parameter.axis).to(weight.dtype)
        return forward_with(module, whole, x, *args)


class NormShift(Shift):
    """A normalization with w + δ; in half precision δ is applied in float32 afterwards, or most of it would be lost."""

    def __init__(self, module: nn.Module, prepared: Prepared, *, trainable: bool) -> None:
        super().__init__(prepared.parameter, trainable=trainable)
        self.to(device_of(module))

    def call(self, module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Return the shifted norm's output."""
        weight = cast("Tensor", module.weight)
        delta = self.full().reshape(weight.shape)
        bias = cast("Tensor | None", getattr(module, "bias", None))
        if weight.dtype not in HALF:
            return normalize(module, weight + delta, bias, x, *args)
        ones = torch.ones_like(weight)
        if not isinstance(module, NORMS):
            # Some classes multiply by 1 + w, so the factor of δ is what one more unit of weight changes.
            unit = forward_with(module, ones, x, *args) - forward_with(module, 0 * ones, x, *args)
            return (forward_with(module, weight, x, *args).float() + unit.float() * delta).to(x.dtype)
        shape = (-1, *[1] * (x.ndim - 2)) if isinstance(module, nn.GroupNorm) else weight.shape
        result = normalize(module, ones, None, x).float() * (weight.float() + delta).reshape(shape)
        return (result if bias is None else result + bias.float().reshape(shape)).to(x.dtype)


def normalize(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor, *args: Any) -> Tensor:
    """Return what a norm computes with this weight and bias."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    return forward_with(module, weight, x, *args)


def forward_with(module: nn.Module, weight: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Return what a layer's class computes with another weight, the layer itself untouched."""
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, "weight": weight}  # type: ignore[dict-item]
    return cast("Tensor", type(module).forward(twin, x, *args))
