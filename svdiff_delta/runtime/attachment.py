"""Attach deltas to a live model: check everything first, then change every layer, or none.

Layers are changed several at once: a product in new memory waits for that memory as long as it multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final, Literal, cast, get_args

from svdiff_delta._util.device_errors import telling
from svdiff_delta.base_model.experts import ExpertWeight, held_weights
from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.ops.weights import WeightedDelta, weigh
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.side_by_side import run_costliest_first

from .attached_model import AttachedModel
from .claim import Claim, LayerPatch, claim_of, undo_unsettled
from .flat_deltas import Sums
from .forms.choice import EXACT, FormName
from .fused import FusedPatch
from .handle import Handle
from .live_sites import live_sites
from .memory import Trim, give_back
from .model_locks import holding, locks_of, ordinary
from .modules import components
from .obstacles import FusionGuard, LoadGuard, check_fusable
from .original_weights import running_on
from .own_forwards import find_forward, own_forward
from .self_check import Check
from .stack_guard import StackGuard
from .targets import TargetLayer, find_places

HALVES: Final = "load the model in half precision or on the CPU, or attach a part of the delta"

Mode = Literal["live", "fused"]
"""Whether layers compute with δ beside them, or weights hold it."""


@telling(AttachError, "while attaching", HALVES)
def attach(
    target: object,
    delta: WeightedDelta | Mapping[str, WeightedDelta],
    *,
    name: str = "default",
    scale: float = 1.0,
    mode: Mode = "live",
    base: Base | None = None,
    form: FormName | None = None,
    exact: bool = False,
    trainable: bool = False,
    check: bool = False,
    cache: BasisCache | None = None,
) -> Handle:
    """Put deltas on a live pipeline or model; nothing is touched before everything is checked.

    Live, linear layers and convolutions run factored, and their weights are dropped while the factors stand for them;
    in half precision they run resident: the weights stay, and the square factors make the change of what the layers
    compute. Fused, the weights become W + ΔW: the forward costs what the base's does, and a change costs two products
    per layer.

    Args:
        target: a diffusers pipeline, one of its models, or a transformers model.
        delta: what to put on it: one delta, or several by name, which are all active. One that comes as a pair
            (delta, weight) has this weight, a number; the others have 1.
        name: what the handle calls a single delta.
        scale: factor on all δ.
        mode: "live" or "fused".
        base: where the original weights are; the files the model was loaded from if not given, and the live weights
            themselves if those are not here. Weights that were cast or offloaded need their files.
        form: "factored", "additive", "resident" or "whole", for all layers that singular values are shifted of; each
            gets the cheapest that serves it if not given (`forms/costs.py`).
        exact: whether ΔW must be the baked weight's on any base, as in the additive form `Wx + U(Δσ ⊙ Vᵀx)`.
        trainable: whether δ takes gradients (see `Handle.parameters`); the model's own weights are left as they are.
        check: whether the next forward of each model compares every shifted layer with W + ΔW, with a δ of the check's
            own where the given one is too small to see; it raises AttachError if a layer differs or was never called.
        cache: where bases are kept; the default cache if not given, and those that are missing are computed on the
            model's GPU if that is fast in float64.

    Returns:
        The handle that weighs, swaps and detaches; as a context manager it detaches at the end.

    Raises:
        AttachError: a component or layer is not there, is of an unsupported class, or is shifted already; memory is not
            enough, or the device has failed.
        BaseMismatchError: a delta was made for another base.
        BaseError: a weight cannot be read or used.
        TensorError: a δ differs where the base's singular values are tied, or is too large.
        InputError: there is no delta, `base` is no opened base, a weight is no finite number, the mode is unknown, or
            what is to be trained is
            fused or several.
    """
    deltas, weights = _weighed(delta, name)
    _check_base(base)
    _check_arguments(deltas, mode, form, exact=exact, trainable=trainable)
    slots = {name.partition(".")[0] for delta in deltas.values() for name in delta}
    models, claim = components(target, slots), Claim()
    locks = (*locks_of(models[slot] for slot in slots), claim.busy)

    def put() -> Handle:
        undo_unsettled(models[slot] for slot in slots)
        bases = cache or BasisCache.beside(running_on(models[slot] for slot in sorted(slots)))
        places = find_places(target, models, deltas, base, bases)
        sites = {key: _sites(place, mode, form, exact=exact, trainable=trainable) for key, place in places.items()}
        claim.take({key: place.modules for key, place in places.items()}, sites)
        _put(claim, places)
        checking = Check({slot: models[slot] for slot in sorted(slots)}, places) if check else None
        claim.checking = checking
        board = AttachedModel({slot: models[slot] for slot in sorted(slots)}, _sums(places), claim)
        claim.handle = Handle(board, deltas, scale, locks[:-1], weights)
        claim.settled = True
        return claim.handle

    try:
        return holding(locks, ordinary(put))
    except BaseException:
        holding(locks, ordinary(claim.undo))
        raise


def handle_of(target: object) -> Handle:
    """Return the handle of what is attached to a model, where it was lost: by Ctrl-C, or in a notebook.

    Args:
        target: a diffusers pipeline, or a model.

    Raises:
        AttachError: nothing is attached to it, or its components were attached to one by one.
    """
    models = components(target, ()).values()
    claims = [claim_of(module) for model in models for module in (*model.modules(), *held_weights(model))]
    settled = [claim for claim in claims if claim is not None and claim.settled]
    handles = {id(claim): claim.handle for claim in settled if claim.handle is not None}
    if not handles:
        raise AttachError("nothing is attached to this model", fix="call `attach`")
    if len(handles) > 1:
        raise AttachError(f"{len(handles)} handles are on parts of this model", fix="ask for that of one component")
    return next(iter(handles.values()))


def _weighed(
    delta: WeightedDelta | Mapping[str, WeightedDelta], name: str
) -> tuple[dict[str, Delta], dict[str, float]]:
    """Return deltas and their weights by name."""
    several = isinstance(delta, Mapping) and not isinstance(delta, Delta)
    given = cast("Mapping[str, WeightedDelta]", delta if several else {name: delta})
    pairs = dict(zip(given, weigh(given.values()), strict=True))
    if selecting := next((key for key, (_, weight) in pairs.items() if weight.where), None):
        raise InputError(
            f"the weight of {selecting!r} has selectors: on a live model it is one number for all layers",
            fix="attach what `add` makes of the delta and this weight",
        )
    return {key: one for key, (one, _) in pairs.items()}, {key: weight.default for key, (_, weight) in pairs.items()}


def _sums(places: Mapping[str, TargetLayer]) -> Sums:
    runs = {key: place.runs for key, place in places.items() if place.runs.tied or place.runs.null}
    return Sums({key: place.parameter for key, place in places.items()}, runs)


def _sites(place: TargetLayer, mode: Mode, form: FormName | None, *, exact: bool, trainable: bool) -> list[LayerPatch]:
    """Return all that is to be put on a layer and its twins, checked; nothing is touched yet."""
    sites: list[LayerPatch] = []
    if mode == "fused":
        check_fusable(place.name, place.module)
        sites.append(FusedPatch(place))
    else:
        for module in place.modules:
            if not isinstance(module, ExpertWeight):  # nobody calls those
                find_forward(place.name, module, own_forward(module))
        sites += live_sites(place, form=form, exact=exact, trainable=trainable)
    for module in place.modules:
        expert = isinstance(module, ExpertWeight)
        sites.append(StackGuard(place.name, cast("ExpertWeight", module)) if expert else LoadGuard(place.name, module))
    return sites + [FusionGuard(place.name, module, parent) for module, parent in place.fusers]


def _put(claim: Claim, places: Mapping[str, TargetLayer]) -> None:
    trim = Trim()

    def change(name: str, wait: bool) -> None:  # noqa: ARG001
        size = weight_of(places[name].module).nbytes
        claim.put(name)
        trim.dropped(size)

    run_costliest_first({name: prod(place.parameter.shape) for name, place in places.items()}, change)
    give_back()


def _check_base(base: object) -> None:
    if base is not None and not isinstance(base, Base):  # of a program without type checks
        raise InputError(f"`base` is a {type(base).__name__}, not an opened base", fix="pass `open_base(path)`")


def _check_arguments(deltas: Mapping[str, Delta], mode: str, form: str | None, *, exact: bool, trainable: bool) -> None:
    if not deltas:
        raise InputError("there is nothing to attach", fix="give at least one delta")
    if mode not in ("live", "fused"):
        raise InputError(f'mode is "live" or "fused", not {mode!r}')
    if form not in (None, *get_args(FormName)):
        raise InputError(f"form is one of {', '.join(get_args(FormName))}, not {form!r}")
    if exact and form not in (None, *EXACT):
        raise InputError(f'`exact` does not go with the form "{form}"', fix="leave one of them out")
    if mode == "fused" and (exact or trainable or form):
        word = "exact" if exact else "form" if form else "trainable"
        raise InputError(
            f"`{word}` is about layers that compute with δ, fused weights are exact", fix='use `mode="live"`'
        )
    if trainable and len(deltas) > 1:
        raise InputError(f"one delta is trained at a time, {len(deltas)} were given")
