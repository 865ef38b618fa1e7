"""Compute the output of a shifted linear layer or convolution by products, in one of the forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import factored_ops
from .factored_ops import HALF, narrow
from .forms.choice import FORMS, choose_form
from .gain_map import Response
from .model_locks import ordinary
from .quantized import compute_dtype
from .shift import Shift

if TYPE_CHECKING:
    from .targets import TargetLayer


class SpectralShift(Shift):
    """A linear layer, convolution or embedding in one of the forms (`FORMS`).

    Args:
        place: the layer and its weight.
        module: the layer itself, or one that is tied to it.
        form: the form's name.
        trainable: as in `Shift`.

    Attributes:
        form: the form.
        outputs: whether the square factor acts on what the layer gives, or on what it takes.
        inner: the weight of the first product, of all singular values or of the tail; None where there is no tail.
        outer: the weight of the second.
        square: (K, K) the square factor, in resident form.
    """

    inner: Any
    outer: Any
    square: Any

    def __init__(self, place: TargetLayer, module: nn.Module, *, form: str, trainable: bool) -> None:
        held = FORMS[form].hold(place, module)
        super().__init__(place, module, held.response, trainable=trainable)
        self.form = FORMS[form]
        rows, columns = factored_ops.sides(place.parameter)
        self.outputs = rows <= columns or isinstance(module, nn.Embedding)
        # A function of its own, so that copies of the model share what it needs.
        self._find: Callable[[], TargetLayer] = lambda: place
        self._hold(held.tensors, compute_dtype(module))

    @property
    def keeps_weight(self) -> bool:
        """True if W is in the layer, False if factors stand for it."""
        return self.form.keeps_weight

    def _hold(self, tensors: dict[str, Tensor | None], dtype: torch.dtype) -> None:
        for name in ("inner", "outer", "square"):
            found = tensors.get(name)
            self._keep(**{name: None if found is None else found.to(self.gain.device, dtype)})

    def other_form(self, dtype: torch.dtype, module: nn.Module) -> str:
        """Return the form that holds W finely enough in another dtype; empty if the layer's own does."""
        if self.form.keeps_weight or not (dtype in HALF or narrow(dtype)):
            return ""
        # What W loses in one byte would be a large part of a change that is made of W.
        form = choose_form(self._find(), module, dtype=dtype, exact=narrow(dtype))
        return "" if form == self.form.name else form

    @ordinary
    def become(self, form: str, module: nn.Module) -> None:
        """Go over to another form, with the δ that is there now."""
        chosen = FORMS[form]
        held = chosen.hold(self._find(), module)
        before, after = self.response, held.response
        gain = moved(self.gain, before, after)
        rows = None if self.rows is None else moved(self.rows, before, after)
        dtype = next(found.dtype for found in (self.inner, self.square) if found is not None)
        self._respond(after, self.gain.device)
        self._keep(gain=gain, rows=rows)
        self._hold(held.tensors, dtype)
        self.form = chosen

    def call(self, module: nn.Module, gain: Tensor, x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        """Return the layer's output with this gain."""
        return self.form.call(self, module, gain, x, *args, **options)

    def weight(self, module: nn.Module, gain: Tensor) -> Tensor:
        """Return W + ΔW with this gain."""
        return self.form.weight(self, module, gain).to(compute_dtype(module))


def moved(gain: Tensor, before: Response, after: Response) -> Tensor:
    """Return a gain (…, R) by one response as a gain (…, R′) of the same Δ by another."""
    index = torch.arange(before.floor.numel()) if before.pick is None else before.pick
    known = before.slope != 0
    change = torch.zeros(*gain.shape[:-1], before.floor.numel(), dtype=torch.float64)
    change[..., index[known]] = ((gain.cpu().double() - before.offset) / before.slope)[..., known]
    picked = change if after.pick is None else change[..., after.pick]
    return (after.offset + after.slope * picked).float().to(gain.device)
