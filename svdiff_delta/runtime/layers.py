"""Compute the output of a shifted layer: by two products (Z or additive form), by a whole weight, or as a norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from svdiff_delta.base_model.kinds import has_own_forward, weight_of
from svdiff_delta.errors import InputError
from svdiff_delta.format.parameter import free_index
from svdiff_delta.svd.decomposition import unmatricize

from . import factored_ops
from .factored_ops import HALF, narrow
from .gain_map import Form, Response, factored
from .layer_calls import Call, forward_apart, forward_with
from .model_locks import ordinary
from .original_weights import device_of
from .per_sample import Batch, multiply
from .targets import TargetLayer

if TYPE_CHECKING:
    from .self_check import Check

WIDE: Final = ("gain", "rows", "value", "floor", "offset", "slope")
"""What stands for δ; it is float32 at least."""


class Shift(nn.Module):
    """δ of one parameter as a live layer holds it: as gains, in float32 whatever the model's dtype.

    What is trained is the numbers that are free: one for a tied run and none for a null singular value, so that δ stays
    projected whatever a trainer does to them (spec, section 6.4).

    Args:
        place: the layer and its weight.
        module: the layer itself, or one that is tied to it.
        response: how the gain depends on δ.
        trainable: whether δ is a parameter that takes gradients.

    Attributes:
        gain: (R,) what multiplies now, unless δ is being trained.
        rows: (S, R), a row for each sample; None where all samples have the same gain.
        value: the free numbers of a δ that is being trained; None otherwise.
        enabled: whether a δ that is being trained is on.
        revive: whether gradients bring back what has fallen below −σ.
        check: what compares the layer with W + ΔW, while one forward is checked.
    """

    gain: Tensor
    rows: Tensor | None
    value: nn.Parameter | None
    spread: Tensor | None
    floor: Tensor
    offset: Tensor
    slope: Tensor
    pick: Tensor | None

    def __init__(self, place: TargetLayer, module: nn.Module, response: Response, *, trainable: bool) -> None:
        super().__init__()
        self.name: Final = place.name
        self.component: Final = place.component
        self.parameter: Final = place.parameter
        self.trainable: Final = trainable
        self.enabled = True
        self.revive = False
        self.check: Check | None = None
        self.batch = Batch(place.component)
        device = device_of(module)
        index = free_index(place.parameter) if trainable else None
        count = place.parameter.size if index is None else int(index.max()) + 1
        self.value = nn.Parameter(torch.zeros(count, device=device)) if trainable else None
        self._keep(rows=None, spread=None if index is None else torch.from_numpy(index).to(device))
        self._respond(response, device)

    def _keep(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def _respond(self, response: Response, device: torch.device) -> None:
        """Take over how the gain depends on δ; the gain becomes that of δ = 0."""
        self.response = response
        self._keep(gain=response.offset.float().to(device))
        if self.trainable:
            self._keep(**{name: getattr(response, name).float().to(device) for name in ("floor", "offset", "slope")})
            self._keep(pick=None if response.pick is None else response.pick.to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Shift:
        """Move and cast everything, but what stands for δ only to float32 or wider, and nothing to one byte.

        Half precision would lose most of δ. Layers that are stored in float8 between their calls would lose what two
        factors hold together; their own weight is rounded to that, as it is without a delta.
        """
        before = {name: found.detach() for name, found in self._tensors().items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, now in self._tensors().items():
            if narrow(now.dtype) or (name in WIDE and now.dtype in HALF):
                now.data = before[name].to(now.device)
        return self

    def _tensors(self) -> dict[str, Tensor]:
        held = {**self._parameters, **self._buffers}
        return {name: found for name, found in held.items() if found is not None}

    def full(self) -> Tensor:
        """Return the δ that is being trained (size,), with every tied and null entry in its place."""
        value = cast("nn.Parameter", self.value)
        if self.spread is None:
            return value
        return F.pad(value, (1, 0))[self.spread + 1]  # index -1 reads the 0 put in front

    def gather(self, numbers: Tensor) -> Tensor:
        """Return those of (size,) numbers that are free ones of the δ that is being trained."""
        value = cast("nn.Parameter", self.value)
        if self.spread is None:
            return numbers.to(value)
        free = torch.zeros_like(value)
        kept = self.spread >= 0
        free[self.spread[kept]] = numbers.to(value)[kept]
        return free

    def start(self, shift: Tensor) -> None:
        """Let training start from a projected δ (size,)."""
        with torch.no_grad():
            cast("nn.Parameter", self.value).copy_(self.gather(shift))

    def clipped_count(self) -> Tensor:
        """Return how many of the δ that is being trained are below −σ, where they do nothing."""
        return (self.full() < self.floor).sum()

    def gains(self) -> Tensor:
        """Return what multiplies, (R,) float32; where σ + δ < 0 it does not depend on δ, as under the paper's ReLU."""
        if self.value is None or not self.enabled:
            return self.gain
        delta = self.full()
        change = projected(delta, self.floor) if self.revive else torch.where(delta > self.floor, delta, self.floor)
        return self.offset + self.slope * (change if self.pick is None else change[self.pick])

    def forward(self, module: nn.Module, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's shifted output.

        Raises:
            InputError: every sample has a δ of its own, and x has another number of samples.
        """
        if self.rows is not None:
            self.batch.check(self.name, x)
        gains = self.gains() if self.rows is None else self.rows
        before = None if self.check is None else Call.of(module, (x, *args), options)
        result = self.call(module, gains, x, *args, **options)
        if self.check is not None and before is not None:
            self.check.output(self, before, result)
        return result

    def gain_of(self, delta: Tensor) -> Tensor:
        """Return the gains (R,) for δ (size,), float32."""
        response = self.response
        change = torch.maximum(delta.double().cpu(), response.floor)
        picked = change if response.pick is None else change[response.pick]
        return (response.offset + response.slope * picked).float().to(self.gain.device)

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain, (R,) or (S, R)."""
        raise NotImplementedError

    def read_weight(self, module: nn.Module) -> Tensor:
        """Return W + ΔW in the weight's shape and dtype, for who reads the weight without calling the layer.

        Raises:
            InputError: every sample has a δ of its own, which one weight cannot have.
        """
        if self.rows is not None:
            raise InputError(
                f"{self.name}: the model reads this weight without calling its layer, so all samples share it",
                fix="run the model once for each delta",
            )
        if self.check is not None:
            self.check.read(self)
        return self.weight(module, self.gains())

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW in the weight's shape and dtype with this gain, (R,)."""
        raise NotImplementedError


def projected(delta: Tensor, floor: Tensor) -> Tensor:
    """Return max(δ, −σ), through which gradients pass that would bring δ back."""
    return cast("Tensor", _Projected.apply(delta, floor))  # type: ignore[no-untyped-call]


class _Projected(torch.autograd.Function):
    """max(δ, −σ) with the projected gradient: below −σ only what would bring δ back passes."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, floor: Tensor) -> Tensor:
        """Return max(δ, −σ)."""
        ctx.save_for_backward(delta, floor)
        return torch.where(delta > floor, delta, floor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient by δ."""
        delta, floor = ctx.saved_tensors
        (grad,) = grads
        return torch.where((delta > floor) | (grad < 0), grad, 0.0), None


class SpectralShift(Shift):
    """A linear layer or convolution as `outer(inner(x) ⊙ gain)`; in additive form that is added to its own output.

    Args:
        place: the layer and its weight.
        module: the layer itself, or one that is tied to it.
        exact: whether to use the additive form.
        trainable: as in `Shift`.

    Attributes:
        whole: whether the two products stand for the weight itself (the Z form).
    """

    inner: Tensor
    outer: Tensor

    def __init__(self, place: TargetLayer, module: nn.Module, *, exact: bool, trainable: bool) -> None:
        dtype = weight_of(module).dtype
        whole = not exact and dtype not in HALF  # a product of two rounded factors is not W to half precision
        form = factored(place.matrix(), place.basis()) if whole else place.additive()
        super().__init__(place, module, form.response, trainable=trainable)
        self.whole = whole
        # A function of its own, so that copies of the model share what it needs.
        self._additive: Callable[[], Form] = lambda: place.additive()
        self._hold(module, form, dtype)

    def _hold(self, module: nn.Module, form: Form, dtype: torch.dtype) -> None:
        inner, outer = factored_ops.product_weights(module, self.parameter, form.rows, form.columns)
        device = self.gain.device
        self._keep(inner=inner.to(device, dtype), outer=outer.to(device, dtype))

    @ordinary
    def become_additive(self, module: nn.Module) -> None:
        """Go over to the additive form, with the δ that is there now."""
        form = self._additive()
        index = torch.arange(form.response.floor.numel()) if self.response.pick is None else self.response.pick
        moved = self.response.slope != 0

        def change(gain: Tensor) -> Tensor:
            found = torch.zeros(*gain.shape[:-1], form.response.floor.numel(), dtype=torch.float64)
            values = (gain.cpu().double() - self.response.offset) / self.response.slope
            found[..., index[moved]] = values[..., moved]
            return found.float().to(gain.device)

        gain, rows = change(self.gain), None if self.rows is None else change(self.rows)
        self._respond(form.response, self.gain.device)
        self._keep(gain=gain, rows=rows)
        self._hold(module, form, self.inner.dtype)
        self.whole = False

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain."""
        hidden = factored_ops.inner(module, self.inner, x, *args, **options)
        # In float32, whatever the model's dtype.
        hidden = multiply(hidden, gain, factored_ops.tail(module, gain.shape[-1])).to(hidden.dtype)
        change = factored_ops.outer(module, self.outer, hidden, bias=self.whole)
        return change if self.whole else factored_ops.added(module, x, change, *args, **options)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW with this gain."""
        rows, columns = factored_ops.factors(module, self.parameter, self.inner, self.outer)
        matrix = (columns.to(gain.dtype) * gain) @ rows.to(gain.dtype)
        change = unmatricize(matrix, self.parameter.shape, self.parameter.axis)
        return (change if self.whole else weight_of(module) + change).to(weight_of(module).dtype)


class WholeShift(Shift):
    """A layer that no two products stand for: its own forward runs on W + ΔW, put together at every call.

    These are grouped convolutions, and layers whose class has a forward of its own.
    """

    left: Tensor
    right: Tensor

    def __init__(self, place: TargetLayer, module: nn.Module, *, trainable: bool) -> None:
        form = place.additive()
        super().__init__(place, module, form.response, trainable=trainable)
        device = self.gain.device
        self._keep(right=form.rows.to(device), left=form.columns.to(device))

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain; samples with one each go through the layer one by one.

        Raises:
            InputError: they would read what the layer has kept of one another.
        """
        if gain.ndim == 1:
            return forward_with(module, self.weight(module, gain), x, *args, **options)
        size = x.shape[0]

        def share(value: Any, index: int) -> Any:
            batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
            return value.unflatten(0, (-1, len(gain)))[:, index] if batched else value

        outputs = []
        for index, row in enumerate(gain):
            given, named = tree_map(partial(share, index=index), ((x, *args), options))
            output, written = forward_apart(module, self.weight(module, row), *given, **named)
            if written:
                raise InputError(
                    f"{self.name}: the layer keeps `{min(written)}` from call to call, for all samples together",
                    fix="run the model once for each delta",
                )
            outputs.append(output)
        return torch.stack(outputs, 1).flatten(0, 1)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW with this gain."""
        weight = weight_of(module)
        matrix = (self.left.to(gain.dtype) * gain) @ self.right.to(gain.dtype)
        return (weight + unmatricize(matrix, self.parameter.shape, self.parameter.axis)).to(weight.dtype)


class NormShift(Shift):
    """A normalization with w + δ; in half precision δ is applied in float32 afterwards, or most of it would be lost."""

    def __init__(self, place: TargetLayer, module: nn.Module, *, trainable: bool) -> None:
        super().__init__(place, module, Response.of_shift(place.parameter.size), trainable=trainable)

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the norm's output with this gain, which is δ itself."""
        weight = weight_of(module)
        if gain.ndim == 1 and weight.dtype not in HALF:
            return forward_with(module, weight + gain.reshape(weight.shape), x, *args, **options)
        bias = cast("Tensor | None", getattr(module, "bias", None))
        shape = (len(weight), *[1] * (x.ndim - 2)) if isinstance(module, nn.GroupNorm) else tuple(weight.shape)
        if has_own_forward(module):
            # What one more unit of weight changes; some classes multiply by 1 + w. Never with a weight of 0 or in half
            # precision: of a weight of 0, kernels for norms cannot give gradients.
            wide, value = weight.float(), x.float() if x.is_floating_point() else x
            unit = forward_with(module, wide + 1, value, *args, **options)
            unit = unit - forward_with(module, wide, value, *args, **options)
            result = forward_with(module, weight, x, *args, **options)
            return (result.float() + multiply(unit.float(), gain, shape)).to(result.dtype)
        result = multiply(normalize(module, x).float(), weight.float().flatten() + gain, shape)
        return (result if bias is None else result + bias.float().reshape(shape)).to(x.dtype)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return w + δ."""
        weight = weight_of(module)
        return (weight + gain.reshape(weight.shape)).to(weight.dtype)


def normalize(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a norm of torch computes without weight and bias, in float32 or the dtype of x."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, None, None, module.eps)
    # By its formula: on a GPU in half precision, torch's fused kernel gives gradients of 1e36 where the weight takes
    # none (torch 2.11; float32 and other norms are right).
    norm, wide = cast("nn.RMSNorm", module), x.float()
    dimensions = tuple(range(-len(norm.normalized_shape), 0))
    eps = torch.finfo(wide.dtype).eps if norm.eps is None else norm.eps
    return wide * torch.rsqrt(wide.square().mean(dimensions, keepdim=True) + eps)
