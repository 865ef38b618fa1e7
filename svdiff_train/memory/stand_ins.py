"""Let layers compute as they would with a δ on them, by the forms' own code, without bases and without values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.format.parameter import Kind, Parameter
from svdiff_delta.runtime.factored_ops import HALF, product_weights, sides
from svdiff_delta.runtime.forms.choice import FORMS, WHOLE, choose_form
from svdiff_delta.runtime.norm_shift import NormShift
from svdiff_delta.runtime.quantized import compute_dtype
from svdiff_delta.runtime.whole_shift import WholeShift


@dataclass(frozen=True)
class StandIn:
    """A layer that is to be shifted, and the form that it would compute in.

    Attributes:
        name: the parameter.
        module: the layer.
        parameter: what a delta would say of it, but for its fingerprint.
        form: the form; empty for norms.
    """

    name: str
    module: nn.Module
    parameter: Parameter
    form: str

    @classmethod
    def of(cls, name: str, module: nn.Module, kind: tuple[Kind, int], shape: tuple[int, ...], *, kept: bool) -> StandIn:
        """Return what stands for a layer.

        Args:
            name: the parameter.
            module: the layer.
            kind: what is shifted of it, on which axis.
            shape: of its weight.
            kept: whether its weight must stay, as one that is shared out over processes.
        """
        parameter = Parameter(shape, kind[0], kind[1], "F32", "")
        place: Any = SimpleNamespace(name=name, parameter=parameter, shared=kept)
        form = choose_form(place, module) if kind[0] == "spectral" else ""
        if kept and form in FORMS and not FORMS[form].keeps_weight:
            form = "additive" if FORMS["resident"].obstacle(place, module, compute_dtype(module)) else "resident"
        return cls(name, module, parameter, form)

    @property
    def numbers(self) -> int:
        """How many numbers δ has."""
        return self.parameter.size

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of what the layer holds beside its weight, or in its place."""
        dtype = compute_dtype(self.module)
        if not self.form:
            return {}
        rows, columns = sides(self.parameter)
        short = min(rows, columns)
        if self.form == WHOLE and dtype not in HALF:
            return {"left": ((rows, short), torch.float32), "right": ((short, columns), torch.float32)}
        if self.form in (WHOLE, "resident"):
            return {"square": ((short, short), torch.float32 if self.form == WHOLE else dtype)}
        with torch.device("meta"):
            pair = product_weights(self.module, self.parameter, torch.empty(short, columns), torch.empty(rows, short))
        return {name: (tuple(each.shape), dtype) for name, each in zip(("inner", "outer"), pair, strict=True)}

    @property
    def held(self) -> int:
        """Bytes that come beside the model: what is held, less the weight where factors stand for it."""
        added = sum(_bytes(shape, dtype) for shape, dtype in self.shapes().values())
        drops = self.form in FORMS and not FORMS[self.form].keeps_weight
        return added - (weight_of(self.module).nbytes if drops else 0)

    def forward(self, device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """Return a forward that computes as the form does, and the tensors that it holds."""
        held = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in self.shapes().items()}
        lacking = dict.fromkeys(("inner", "outer", "square", "left", "right"))
        rows, columns = sides(self.parameter) if self.form else (0, 0)
        shift: Any = SimpleNamespace(
            **{**lacking, **held},
            parameter=self.parameter,
            outputs=rows <= columns or isinstance(self.module, nn.Embedding),
            name=self.name,
        )
        gain = torch.empty(self.numbers, device=device, requires_grad=True)
        cls: Any = NormShift if not self.form else WholeShift
        if self.form in FORMS:
            form = FORMS[self.form]
            call: Callable[..., Tensor] = lambda module, x, *args, **options: form.call(  # noqa: E731
                shift, module, gain, x, *args, **options
            )
        else:
            shift.weight = lambda module, gain: cls.weight(shift, module, gain)
            call = lambda module, x, *args, **options: cls.call(shift, module, gain, x, *args, **options)  # noqa: E731
        return call, [gain, *held.values()]


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def stand_in(places: Iterable[StandIn], device: torch.device) -> list[Tensor]:
    """Let layers compute from now on as if they were shifted; return the tensors that they hold.

    Raises:
        NotImplementedError: the weights of several experts are stacked, and no layer computes with one of them.
    """
    held: list[Tensor] = []
    for place in places:
        if isinstance(place.module, ExpertWeight):
            raise NotImplementedError(f"{place.name} is one of several experts whose weights are stacked")
        call, tensors = place.forward(device)
        held += tensors
        place.module.__dict__["forward"] = MethodType(_called(call), place.module)
    return held


def _called(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: nn.Module, /, *args: Any, **options: Any) -> Tensor:
        if not args:
            args = (options.pop(next(iter(options))),)
        return call(self, *args, **options)

    return forward
