"""Choose what is put on a layer so that it computes with δ, and make it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from svdiff_delta.base_model.experts import ExpertWeight

from .dropped_weight import Dropped
from .factored_ops import HALF
from .forms.choice import WHOLE, choose_form
from .norm_shift import NormShift
from .patched_layers import LivePatch
from .quantized import compute_dtype
from .shift import Shift
from .spectral_shift import SpectralShift
from .stacked_shift import StackedPatch
from .whole_shift import WholeShift

if TYPE_CHECKING:
    from .targets import TargetLayer


def live_sites(place: TargetLayer, *, form: str | None, exact: bool, trainable: bool) -> list[LivePatch]:
    """Return what lets shifts compute the output of a layer and of those it is tied to; nothing is put there yet.

    Args:
        place: the layer and its weight.
        form: the form to compute in; the cheapest that serves the layer if not given.
        exact: whether ΔW must be the baked weight's on any base.
        trainable: whether δ takes gradients; tied layers train one parameter.
    """
    # Functions of their own, so that copies of the model share what they need.
    spectral = place.parameter.kind == "spectral"
    forms = [choose_form(place, each, form, exact=exact) if spectral else "" for each in place.modules]
    if isinstance(place.module, ExpertWeight):
        form = forms[0]
        make = lambda: _make_shift(place, place.module, form=form, exact=exact, trainable=trainable)  # noqa: E731
        return [StackedPatch(place.name, place.module, make)]
    dropped = Dropped(place.module, lambda: place.read(), lambda weight: place.cast(weight))
    make = lambda: _make_shift(place, place.module, form=forms[0], exact=exact, trainable=trainable)  # noqa: E731
    droppable = not place.shared and not place.offloaded
    sites = [LivePatch(place.name, place.module, make, dropped if droppable else None)]
    first = sites[0]

    def make_twin(module: nn.Module, form: str) -> Shift:
        shift = _make_shift(place, module, form=form, exact=exact, trainable=trainable)
        shift.value = first.shift.value
        return shift

    twins = zip(place.twins, forms[1:], strict=True)
    return sites + [LivePatch(place.name, module, partial(make_twin, module, form)) for module, form in twins]


def _make_shift(place: TargetLayer, module: nn.Module, *, form: str, exact: bool, trainable: bool) -> Shift:
    if place.parameter.kind == "elementwise":
        return NormShift(place, module, trainable=trainable)
    if form == WHOLE:
        both = exact or compute_dtype(module) not in HALF  # memory is what half precision is for
        return WholeShift(place, module, both=both, trainable=trainable)
    return SpectralShift(place, module, form=form, trainable=trainable)
