"""Choose the form in which a layer computes: the one that was asked for, or the cheapest that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn

from svdiff_delta.errors import AttachError
from svdiff_delta.runtime import factored_ops
from svdiff_delta.runtime.quantized import compute_dtype, quantized_weight

from .additive import Additive
from .costs import cost
from .factored import Factored
from .form import LayerForm
from .resident import Resident

if TYPE_CHECKING:
    from svdiff_delta.runtime.targets import TargetLayer

FORMS: Final[Mapping[str, LayerForm]] = {form.name: form for form in (Factored(), Additive(), Resident())}
"""The forms of layers that two products stand for, by name."""

FormName = Literal["factored", "additive", "resident", "whole"]
"""How a live layer computes with δ."""

WHOLE: Final = "whole"
"""The form without products of its own: the layer's forward runs on W + ΔW."""

EXACT: Final = ("additive", WHOLE)
"""Forms whose ΔW is that of a baked weight on any base."""


def choose_form(
    place: TargetLayer,
    module: nn.Module,
    form: str | None = None,
    *,
    exact: bool = False,
    dtype: torch.dtype | None = None,
) -> str:
    """Return the name of the form of a spectral layer.

    Args:
        place: the layer and its weight.
        module: the layer itself, or one that is tied to it.
        form: the one that was asked for; the cheapest that serves the layer if not given.
        exact: whether only forms will do whose ΔW is the baked weight's.
        dtype: what the layer is going to compute in; that of its weight if not given.

    Raises:
        AttachError: the form cannot serve the layer.
    """
    why = {name: found.obstacle(place, module, dtype or compute_dtype(module)) for name, found in FORMS.items()}
    why[WHOLE] = _whole_obstacle(module)
    serving = [name for name in why if not why[name]]
    if form is None:
        rows, columns = factored_ops.sides(place.parameter)
        allowed = [name for name in serving if name != WHOLE and (not exact or name in EXACT)]
        form = min(allowed, key=lambda name: cost(name, rows, columns, dropped=not place.shared), default=WHOLE)
    if form in serving:
        return form
    others = ", ".join(f'"{name}"' for name in serving)
    raise AttachError(
        f'{place.name}: the form "{form}" cannot serve it: {why[form]}',
        fix=f"leave `form` out, or {others}" if serving else "leave the layer out with `select`",
    )


def _whole_obstacle(module: nn.Module) -> str:
    """Return why a layer's own forward cannot run on W + ΔW; empty if it can."""
    stored = quantized_weight(module)
    return "" if stored is None or stored.cast else f"its weight is quantized ({stored.scheme}), and stays so"
