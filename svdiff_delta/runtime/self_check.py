"""Compare every shifted layer in one forward with W + ΔW, put together as `bake` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from svdiff_delta.base_model.devices import on_host
from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import project
from svdiff_delta.svd.decomposition import matricize, unmatricize
from svdiff_delta.svd.shifted_weight import delta_weight

from . import factored_ops
from .fused import FusedPatch
from .layer_calls import Call, forward_with, own_output
from .live_weight import note_reads
from .quantized import plain_weight, quantized_weight
from .shift import Shift
from .spectral_shift import SpectralShift

if TYPE_CHECKING:
    from .targets import TargetLayer

SHARE: Final = 0.02
"""How much of a layer's change may differ: twice what two factors rounded to bfloat16 cost (measured: under 1 %)."""

ROUNDINGS: Final = 8
"""Times the output's last bit, for products and sums in another order than the check's."""

OWN: Final = 0.3
"""The check's own δ, relative to σ: a change that no rounding hides. Of a norm's weights it is this itself."""

SHOWN: Final = 3
"""How many layers an error names."""

Reference = Callable[[NDArray[np.float64]], Tensor]
"""What a layer should compute with a δ."""


class Check:
    """A check that the next forward of each model must pass; it ends with the first forward that passes.

    Args:
        models: the models by component.
        places: the weights that are shifted, by parameter name.

    Attributes:
        total: δ as it was put on the model, by parameter name.
    """

    def __init__(self, models: Mapping[str, nn.Module], places: Mapping[str, TargetLayer]) -> None:
        self._places, self._models = places, models
        self._seen: set[str] = set()
        self._over = False
        self._ends = {slot: ExitStack() for slot in models}
        self.total: Callable[[str], NDArray[np.float64]] = lambda name: np.zeros(places[name].parameter.size)

    def begin(self, shifts: Sequence[Shift], fused: Sequence[FusedPatch]) -> None:
        """Watch all layers from now on."""
        for shift in shifts:
            shift.check = self
            self._ends[shift.component].callback(setattr, shift, "check", None)
        for site in fused:
            for module in site.modules:
                end = note_reads(module, lambda name=site.name: self._seen.add(name))  # type: ignore[misc]
                self._ends[site.component].callback(end)
        for slot, model in self._models.items():

            def finish(*_: object, slot: str = slot) -> None:
                if not self._over:
                    self._finish(slot)

            self._ends[slot].callback(model.register_forward_hook(finish).remove)

    def stop(self) -> None:
        """Watch no longer; a hook that was left behind does nothing then."""
        self._over = True
        for end in self._ends.values():
            end.close()

    def _finish(self, slot: str) -> None:
        """End the check of a model after a forward.

        Raises:
            AttachError: it has not run a shifted layer, nor read its weight.
        """
        names = [name for name in self._places if name.partition(".")[0] == slot]
        missed = [name for name in names if name not in self._seen]
        if missed:
            more = ", …" if len(missed) > SHOWN else ""
            raise AttachError(
                f"{missed[0]}: the forward has neither called this layer nor read its weight, so its δ has no effect "
                f"({len(missed)} of {len(names)} shifted layers: {', '.join(missed[:SHOWN])}{more})",
                fix="leave such layers out with `select`, or give inputs that reach them",
            )
        self._ends[slot].close()

    @on_host
    def output(self, shift: Shift, call: Call, result: Tensor) -> None:
        """Compare what a layer has computed.

        Args:
            shift: the layer's δ.
            call: the call as it was before the layer computed.
            result: what came of it.

        Raises:
            AttachError: it is not what W + ΔW computes.
        """
        self._seen.add(shift.name)
        if shift.rows is None:  # else samples differ, and `per_sample` has its own checks
            with torch.no_grad(), torch.autocast(result.device.type, enabled=False):
                self._compare(shift, call, result)

    def read(self, shift: Shift) -> None:
        """Note that somebody has read the weight, or that of another expert, and so would have read this one."""
        self._seen.add(shift.name)

    @on_host
    def weight(self, shift: Shift, module: nn.Module, found: Tensor) -> None:
        """Compare what a layer's weight is read as by who does not call the layer.

        Args:
            shift: the layer's δ.
            module: the layer.
            found: what is read.

        Raises:
            AttachError: it is not W + ΔW.
        """
        self._seen.add(shift.name)
        if torch.compiler.is_compiling() or quantized_weight(module) is not None:
            return
        with torch.no_grad(), torch.autocast(found.device.type, enabled=False):
            dtype = torch.promote_types(torch.float32, found.dtype)
            change = delta_weight(self._places[shift.name].prepared(), torch.from_numpy(self._given(shift)))
            expected = self._weight(shift, module).to(found.device, dtype) + change.to(found.device, dtype)
            noise = ROUNDINGS * torch.finfo(found.dtype).eps * float(expected.norm())
            off, moved = float((found.to(dtype) - expected).norm()), float(change.norm())
        if not off <= SHARE * moved + noise:
            raise AttachError(
                f"{shift.name}: what the model reads as its weight is no W + ΔW, it is off by "
                f"{off / moved if moved else float('inf'):.2g} of the change",
                fix='attach with `mode="fused"`, or bake the delta',
            )

    def _compare(self, shift: Shift, call: Call, result: Tensor) -> None:
        module = call.module
        packed = quantized_weight(module) is not None and isinstance(shift, SpectralShift)
        base, reference_of = (self._quantized_reference if packed else self._reference)(shift, call, result)
        delta = self._given(shift)
        expected, dtype = reference_of(delta), base.dtype
        noise = ROUNDINGS * torch.finfo(result.dtype).eps * float(expected.norm())
        if float((expected - base).norm()) < noise:
            delta = self._own(shift.name)
            expected = reference_of(delta)
            again = call.again()
            result = shift.call(again.module, shift.gain_of(torch.from_numpy(delta)), *again.args, **again.options)
        noise *= self._growth(shift, delta) if packed else 1.0
        change, off = float((expected - base).norm()), float((result.to(dtype) - expected).norm())
        if not off <= SHARE * change + noise:
            raise AttachError(
                f"{shift.name}: {type(module).__name__} does not compute with W + ΔW here, "
                f"it is off by {off / change if change else float('inf'):.2g} of the change",
                fix='attach with `mode="fused"`, or bake the delta',
            )

    def _reference(self, shift: Shift, call: Call, result: Tensor) -> tuple[Tensor, Reference]:
        """Return what a layer computes with W, and what gives that with W + ΔW, in float32 at least."""
        dtype = torch.promote_types(torch.float32, weight_of(call.module).dtype)
        weight = self._weight(shift, call.module).to(result.device, dtype)

        def computed(weight: Tensor) -> Tensor:
            again = call.again(dtype)
            return forward_with(again.module, weight, *again.args, **again.options).to(dtype)

        def reference(delta: NDArray[np.float64]) -> Tensor:
            change = delta_weight(self._places[shift.name].prepared(), torch.from_numpy(delta))
            return computed(weight + change.to(weight))

        return computed(weight), reference

    def _quantized_reference(self, shift: Shift, call: Call, result: Tensor) -> tuple[Tensor, Reference]:
        """Return the same of a quantized layer, whose own output stands for that with W.

        In resident form ΔW is made of the quantized weight: it has the share of its rounding that δ asks for.
        """
        again, dtype, place = call.again(), torch.float32, self._places[shift.name]
        base = own_output(again.module, *again.args, **again.options).to(dtype)

        def reference(delta: NDArray[np.float64]) -> Tensor:
            prepared, moved = place.prepared(), torch.from_numpy(delta)
            change = delta_weight(prepared, moved)
            if _is_resident(shift) and prepared.basis is not None:
                lost = plain_weight(call.module).cpu().float() - prepared.rounded
                bare = replace(prepared.basis, tail=torch.zeros_like(prepared.basis.tail))
                axis = place.parameter.axis
                change = change + unmatricize(
                    bare.delta_weight(matricize(lost, axis), moved), place.parameter.shape, axis
                )
            again = call.again(dtype)
            weight = factored_ops.as_called(again.module, change.to(result.device, dtype))
            return base + factored_ops.inner(again.module, weight, *again.args, **again.options)

        return base, reference

    def _growth(self, shift: Shift, delta: NDArray[np.float64]) -> float:
        """Return what the last bit of the layer's own output counts, where the change is made of that."""
        basis = self._places[shift.name].prepared().basis if _is_resident(shift) else None
        if basis is None:
            return 1.0
        start, _ = basis.split
        sigma = basis.sigma[:start].numpy()
        return 1.0 + float(np.sqrt(np.mean((np.maximum(delta[:start], -sigma) / sigma) ** 2))) if start else 1.0

    def _given(self, shift: Shift) -> NDArray[np.float64]:
        if shift.trainable and shift.enabled:
            return shift.full().detach().double().cpu().numpy()
        return self.total(shift.name)

    def _own(self, name: str) -> NDArray[np.float64]:
        place = self._places[name]
        basis = place.prepared().basis
        size = place.parameter.size
        return project(place.parameter, OWN * (np.ones(size) if basis is None else basis.sigma.numpy()))

    def _weight(self, shift: Shift, module: nn.Module) -> Tensor:
        """Return W: the layer's own, which may be cast or offloaded, unless factors stand for it."""
        return weight_of(module) if shift.keeps_weight else self._places[shift.name].live()


def _is_resident(shift: Shift) -> bool:
    """Tell whether ΔW is made of what the layer's own weight computes."""
    return isinstance(shift, SpectralShift) and shift.square is not None
