"""Hold δ of one layer of a live model as the gains that it computes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.parameter import free_index

from .factored_ops import HALF, narrow
from .gain_map import Response
from .joint_gains import MapCache, joint_gains
from .layer_calls import Call, own_output
from .original_weights import device_of
from .per_sample import Batch
from .sharded import is_sharded
from .trained_gains import TrainedGains
from .watched_operations import plain

if TYPE_CHECKING:
    from .self_check import Check
    from .targets import TargetLayer

WIDE: Final = ("gain", "rows", "value", "flat", "floor", "offset", "slope")
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
        value: the free numbers of a δ that is being trained; None otherwise, or if they are in a flat parameter.
        flat: the flat parameter that this layer holds for itself and others, so that it moves with the model.
        reached: whether a gradient has come to the gains since training began.
        together: what computes the gains of all layers at once; None if nothing does.
        enabled: whether a δ that is being trained is on.
        idle: whether the gain is that of δ = 0.
        keeps_weight: whether W is in the layer.
        revive: whether gradients bring back what has fallen below −σ.
        check: what compares the layer with W + ΔW, while one forward is checked.
    """

    stacked = False
    gain: Tensor
    rows: Tensor | None
    value: nn.Parameter | None
    flat: nn.Parameter | None
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
        self.enabled, self.idle = True, False
        self.revive = False
        self.reached = False
        self.check: Check | None = None
        self.together: TrainedGains | None = None
        self._row: tuple[nn.Parameter, int] | None = None
        self._maps = MapCache()
        self.batch = Batch(place.component)
        device = device_of(module)
        index = free_index(place.parameter) if trainable else None
        count = place.parameter.size if index is None else int(index.max()) + 1
        self.count: Final = count
        self.value = nn.Parameter(torch.zeros(count, device=device)) if trainable else None
        self.register_parameter("flat", None)
        self._keep(rows=None, spread=None if index is None else torch.from_numpy(index).to(device))
        self._respond(response, device)

    def _keep(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def keeps_weight(self) -> bool:
        """True if W is in the layer, False if factors stand for it."""
        return True

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

    @property
    def leaf(self) -> nn.Parameter:
        """The parameter that the free numbers are in."""
        return cast("nn.Parameter", self.value) if self._row is None else self._row[0]

    @property
    def start_at(self) -> int:
        """The index in that at which the free numbers start."""
        return 0 if self._row is None else self._row[1]

    def move_into(self, flat: nn.Parameter, start: int) -> None:
        """Let the free numbers be those of a flat parameter from here on."""
        self._row, self.value = (flat, start), None

    def free(self) -> Tensor:
        """Return the free numbers (count,) of the δ that is being trained."""
        leaf = self.leaf
        return leaf if self._row is None else leaf.narrow(0, self.start_at, self.count)

    def full(self) -> Tensor:
        """Return the δ that is being trained (size,), with every tied and null entry in its place."""
        value = self.free()
        if self.spread is None:
            return value
        return F.pad(value, (1, 0))[self.spread + 1]  # index -1 reads the 0 put in front

    def gather(self, numbers: Tensor) -> Tensor:
        """Return those of (size,) numbers that are free ones of the δ that is being trained."""
        value = self.free().detach()
        if self.spread is None:
            return numbers.to(value)
        free = torch.zeros_like(value)
        kept = self.spread >= 0
        free[self.spread[kept]] = numbers.to(value)[kept]
        return free

    def start(self, shift: Tensor) -> None:
        """Let training start from a projected δ (size,)."""
        with torch.no_grad():
            self.free().copy_(self.gather(shift))

    def clipped_count(self) -> Tensor:
        """Return how many of the δ that is being trained are below −σ, where they do nothing."""
        return (self.full() < self.floor).sum()

    def gains(self) -> Tensor:
        """Return what multiplies, (R,) float32; where σ + δ < 0 it does not depend on δ, as under the paper's ReLU."""
        if not self.trainable or not self.enabled:
            return self.gain
        if torch.compiler.is_compiling() or plain():
            return self._plain()
        part = None if self.together is None else self.together.part(self)
        joint = self._maps.of((self,)) if part is None else None
        if part is None and joint is not None:
            (part,) = joint_gains(joint, (self,))
        if part is None:  # others hold the flat parameter, on another device
            return self._plain()
        return part if part.device == self.gain.device else part.to(self.gain.device)

    def _plain(self) -> Tensor:
        """Return the gains by operations that whoever looks at each of them knows."""
        delta, floor = self.full().to(self.floor), self.floor
        change = projected(delta, floor) if self.revive else torch.where(delta <= floor, floor, delta)
        return self.offset + self.slope * (change if self.pick is None else change[self.pick])

    def forward(self, module: nn.Module, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's shifted output.

        Raises:
            InputError: every sample has a δ of its own, and x has another number of samples.
        """
        if self.rows is not None:
            self.batch.check(self.name, x)
        if self._off():
            return own_output(module, x, *args, **options)  # the base, bit for bit
        gains = self.gains() if self.rows is None else self.rows
        before = None if self.check is None else Call.of(module, (x, *args), options)
        result = self.call(module, gains, x, *args, **options)
        if self.check is not None and before is not None:
            self.check.output(self, before, result)
        return result

    def _off(self) -> bool:
        """Tell whether W alone is to compute; a compiled model would be compiled again for it."""
        if torch.compiler.is_compiling() or self.rows is not None or self.check is not None or not self.keeps_weight:
            return False
        return not self.enabled if self.trainable else self.idle

    def gain_of(self, delta: Tensor) -> Tensor:
        """Return the gains (R,) for δ (size,), float32."""
        response = self.response
        change = torch.maximum(delta.double().cpu(), response.floor)
        picked = change if response.pick is None else change[response.pick]
        return (response.offset + response.slope * picked).float().to(self.gain.device)

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain, (R,) or (S, R)."""
        raise NotImplementedError

    def other_form(self, dtype: torch.dtype, module: nn.Module) -> str:  # noqa: ARG002
        """Return the form that the layer must go over to in another dtype; empty if it stays as it is."""
        return ""

    def become(self, form: str, module: nn.Module) -> None:
        """Go over to another form, with the δ that is there now."""
        raise NotImplementedError

    def holds(self, attribute: str) -> bool:
        """Tell whether this is the shift of a layer's parameter of this name."""
        return attribute == "weight"

    def read_weight(self, module: nn.Module, *_: object) -> Tensor:
        """Return W + ΔW in the weight's shape and dtype, for who reads the weight without calling the layer.

        Raises:
            InputError: every sample has a δ of its own, which one weight cannot have.
            AttachError: the weight is sharded over processes, and its layer does not compute now.
        """
        if not torch.compiler.is_compiling() and is_sharded(weight_of(module)):
            raise AttachError(
                f"{self.name}: was read outside its layer's call, and is sharded over processes there",
                fix="let the layer be called, or leave it out with `select`",
            )
        if self.rows is not None:
            raise InputError(
                f"{self.name}: the model reads this weight without calling its layer, so all samples share it",
                fix="run the model once for each delta",
            )
        found = self.weight(module, self.gains())
        if self.check is not None:
            self.check.weight(self, module, found)
        return found

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
        return torch.where(delta <= floor, floor, delta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient by δ."""
        delta, floor = ctx.saved_tensors
        (grad,) = grads
        return torch.where((delta > floor) | (grad < 0), grad, 0.0), None
