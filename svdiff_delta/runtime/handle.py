"""Putting δ on a live model, changing it there, and taking it off again, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MethodType, TracebackType
from typing import Any, Final, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from svdiff_delta._json import JSON
from svdiff_delta.base import Base
from svdiff_delta.cache import BasisCache
from svdiff_delta.delta import Delta
from svdiff_delta.errors import AttachError, BaseMismatchError, InputError
from svdiff_delta.fitting import check_base, fit_all
from svdiff_delta.kinds import kind_of
from svdiff_delta.parameter import Kind, Parameter
from svdiff_delta.prepare import Prepared, Weights, fit
from svdiff_delta.totals import weighted_total

from .layers import HALF, NormShift, Shift, SpectralShift, WholeShift
from .models import components, layer
from .originals import LiveWeights, check_live, find_base
from .products import is_grouped

SLOT: Final = "svdiff_shift"
"""The name under which a shifted layer holds its `Shift`."""

HOOKED: Final = "_old_forward"
"""Where accelerate's hooks keep a module's own forward."""


@dataclass(frozen=True)
class _Site:
    """One shifted weight: its layer, what stands for δ there, what undoes it, and the same for layers that are tied."""

    module: nn.Module
    shift: Shift
    undo: Callable[[], None]
    twins: tuple[_Site, ...] = ()

    def load(self, shift: Tensor) -> None:
        """Take over a projected δ (size,) in float64."""
        for site in (self, *self.twins):
            site.shift.load(shift)

    def restore(self) -> None:
        """Let the layers be what they were."""
        for site in (*self.twins, self):
            site.undo()


def attach(
    target: object,
    delta: Delta,
    *,
    scale: float = 1.0,
    base: Base | None = None,
    exact: bool = False,
    trainable: bool = False,
    cache: BasisCache | None = None,
) -> Handle:
    """Put a delta on a live pipeline or model; nothing is touched before everything is checked.

    Linear layers and convolutions run factored, and their weights are dropped while the factors stand for them; models
    in half precision, and all with `exact=True`, keep the weights and add the shift's own two products.

    Args:
        target: a diffusers pipeline, one of its models, or a transformers model.
        delta: what to put on it.
        scale: factor on δ.
        base: where the original weights are; the files the model was loaded from if not given, and the live weights
            themselves if those are not here. Weights that were cast or offloaded need their files.
        exact: whether to use the additive form `Wx + U(Δσ ⊙ Vᵀx)`, which equals the baked weight on any base.
        trainable: whether δ takes gradients (see `Handle.parameters`); the model's own weights are left as they are.
        cache: where bases are kept; the default cache if not given.

    Returns:
        The handle that swaps, scales and detaches; as a context manager it detaches at the end.

    Raises:
        AttachError: a component or layer is not there, is of an unsupported class, or is shifted already.
        BaseMismatchError: the delta was made for another base.
        BaseError: a weight cannot be read or used.
    """
    models = components(target, (name.partition(".")[0] for name in delta))
    base = base or find_base(target, models, (name.partition(".")[0] for name in delta))
    weights: Weights = base or LiveWeights(models)
    cache = cache or BasisCache()
    if base is not None:
        fit_all(base, [delta], cache)  # several bases at once
    plan: dict[str, tuple[nn.Module, Prepared]] = {}
    for name in delta:
        module = layer(models, name)
        if twin := next((other for other, (taken, _) in plan.items() if taken.weight is module.weight), None):
            raise AttachError(f"{name}: shifts the same weight as {twin}", fix="keep one of the two names")
        _check_layer(name, module, delta.metadata.parameters[name])
        prepared = _fit(weights, name, delta, cache)
        if base is not None:
            check_live(name, module, prepared.weight)
        plan[name] = module, prepared
    shared = _shared_weights(models)
    tied = {name: _twins(name, models, module) for name, (module, _) in plan.items()}
    for name, others in tied.items():
        for other in others:
            _check_layer(name, other, delta.metadata.parameters[name])
    sites = {}
    for name, (module, prepared) in plan.items():
        shift = _make_shift(module, prepared, exact=exact, trainable=trainable)
        drop = base is not None and isinstance(shift, SpectralShift) and not shift.keeps_weight
        held = id(module.weight) in shared or cast("Tensor", module.weight).device.type == "meta"
        droppable = drop and not held
        site = _install(name, module, shift, base if droppable else None)
        twins = tuple(_install(name, twin, _make_twin(twin, prepared, shift, exact=exact), None) for twin in tied[name])
        sites[name] = replace(site, twins=twins)
    return Handle(sites, delta, scale)


class Handle:
    """A delta on a live model. Made by `attach`.

    Args:
        sites: the shifted layers by parameter name.
        delta: what was put on them.
        scale: factor on δ.
    """

    def __init__(self, sites: Mapping[str, _Site], delta: Delta, scale: float) -> None:
        self._sites: dict[str, _Site] = dict(sites)
        self._delta, self._current, self._scale = delta, delta, _finite(scale)
        self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def scale(self) -> float:
        """The factor on δ."""
        return self._scale

    def set_scale(self, scale: float) -> None:
        """Multiply δ by another factor; raise InputError if it is not finite."""
        self._scale = _finite(scale)
        self._write()

    def swap(self, delta: Delta) -> None:
        """Put another delta of the same base in its place; layers that it does not shift return to δ = 0.

        Raises:
            AttachError: it shifts a layer that was not attached, or the handle is detached.
            BaseMismatchError: it was made for another base.
        """
        self._check_attached()
        for name, parameter in delta.metadata.parameters.items():
            if name not in self._sites:
                raise AttachError(f"{name}: is not among the attached layers", fix="detach, and attach this delta anew")
            _check_same(name, self._delta.metadata.parameters[name], parameter)
        self._current = delta
        self._write()

    def _write(self) -> None:
        self._check_attached()
        # The first delta's parameters stay: they say which numbers are free.
        for name, site in self._sites.items():
            parameter = self._delta.metadata.parameters[name]
            site.load(torch.from_numpy(weighted_total(name, parameter, [self._current], [self._scale])))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameter name and the free numbers of its δ, for an optimizer; nothing unless `trainable`."""
        for name, site in self._sites.items():
            if isinstance(site.shift.value, nn.Parameter):
                yield name, site.shift.value

    def kinds(self) -> dict[str, Kind]:
        """Return the kind of each attached parameter, by name."""
        return {name: self._delta.metadata.parameters[name].kind for name in self._sites}

    def delta(self, *, training: Mapping[str, JSON] | None = None) -> Delta:
        """Return δ as it is on the model now, with its scale folded in.

        Args:
            training: facts to record in its metadata.

        Raises:
            TensorError: a value is not finite.
        """
        self._check_attached()
        values = {name: _numpy(site.shift) for name, site in self._sites.items()}
        metadata = replace(self._delta.metadata, training=training or self._delta.metadata.training)
        return Delta(values, metadata)

    def detach(self) -> None:
        """Take δ off; every weight is again what it was, bit for bit. A second call does nothing."""
        for site in self._sites.values():
            site.restore()
        self._sites.clear()

    def _check_attached(self) -> None:
        if not self._sites:
            raise AttachError("the delta was detached", fix="attach it again")


def _numpy(shift: Shift) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        return cast("np.ndarray[Any, np.dtype[np.float32]]", shift.full().float().cpu().numpy())


def _finite(scale: float) -> float:
    if not np.isfinite(scale):
        raise InputError(f"the scale must be a finite number, is {scale}")
    return float(scale)


def _check_layer(name: str, module: nn.Module, parameter: Parameter) -> None:
    if hasattr(module, SLOT):
        raise AttachError(f"{name}: has a delta on it already", fix="detach that first, or `add` the two deltas")
    found = kind_of(module, on_request=True)
    dtype = cast("Tensor", module.weight).dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise AttachError(
            f"{name}: the live weight is quantized ({str(dtype).removeprefix('torch.')})",
            fix="load the model in F16, BF16 or F32, or use `bake` on its unquantized base",
        )
    if found is None or getattr(module, "max_norm", None) is not None:
        raise AttachError(f"{name}: layers of class {type(module).__name__} cannot be shifted live", fix="use `bake`")
    if found != (parameter.kind, parameter.axis):
        raise AttachError(
            f"{name}: the delta says {parameter.kind} on axis {parameter.axis}, "
            f"{type(module).__name__} is {found[0]} on axis {found[1]}"
        )


def _fit(weights: Weights, name: str, delta: Delta, cache: BasisCache) -> Prepared:
    try:
        return fit(weights, name, delta, cache)
    except BaseMismatchError as error:
        check_base(weights, delta)  # says which others differ too
        raise error from None


def _check_same(name: str, here: Parameter, there: Parameter) -> None:
    if here.fingerprint != there.fingerprint:
        raise BaseMismatchError(
            f"{name}: the delta was made for another base (fingerprint {there.fingerprint}, here {here.fingerprint})",
            fix="swap only deltas of one base",
        )


def _shared_weights(models: Mapping[str, nn.Module]) -> set[int]:
    """Return the identities of parameters that several modules own; those must stay where they are."""
    seen: set[int] = set()
    shared: set[int] = set()
    for model in models.values():
        for module in model.modules():
            for parameter in module._parameters.values():
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _twins(name: str, models: Mapping[str, nn.Module], module: nn.Module) -> list[nn.Module]:
    """Return the other layers that a layer's weight is tied to, such as the output layer of an embedding."""
    model = models[name.partition(".")[0]]
    return [other for other in model.modules() if other is not module and _weight(other) is _weight(module)]


def _weight(module: nn.Module) -> object:
    return module._parameters.get("weight", module)


def _make_twin(module: nn.Module, prepared: Prepared, shift: Shift, *, exact: bool) -> Shift:
    """Return what stands for the same δ in a tied layer; what is trained there is one parameter."""
    twin = _make_shift(module, prepared, exact=exact, trainable=shift.trainable)
    if shift.trainable:
        twin.value = shift.value
    return twin


def _make_shift(module: nn.Module, prepared: Prepared, *, exact: bool, trainable: bool) -> Shift:
    if prepared.basis is None:
        return NormShift(module, prepared, trainable=trainable)
    if is_grouped(module):
        return WholeShift(module, prepared, trainable=trainable)
    half = cast("Tensor", module.weight).dtype in HALF  # a product of two rounded factors is not W to half precision
    return SpectralShift(module, prepared, exact=exact or half, trainable=trainable)


def _install(name: str, module: nn.Module, shift: Shift, base: Base | None) -> _Site:
    """Let `shift` compute the layer's output; with a base to read it from again, drop the weight."""
    module.add_module(SLOT, shift)
    # accelerate brings an offloaded weight in and then calls the forward that it has put aside.
    attribute = HOOKED if hasattr(module, HOOKED) else "forward"
    before = module.__dict__.get(attribute)
    setattr(module, attribute, MethodType(_shifted_forward, module))

    def uninstall() -> None:
        delattr(module, SLOT)
        delattr(module, attribute)
        if before is not None:
            setattr(module, attribute, before)

    if base is None:
        return _Site(module, shift, uninstall)
    weight = cast("nn.Parameter", module.weight)
    # NaN in one element seen as many: whoever reads the weight past the shift notices at once.
    weight.data = torch.full((), torch.nan, dtype=weight.dtype, device=weight.device).expand(weight.shape)
    guard = module.register_state_dict_pre_hook(_refuse_state_dict)

    def restore() -> None:
        weight.data = base.read(name).to(weight.device, weight.dtype)
        guard.remove()
        uninstall()

    return _Site(module, shift, restore)


def _shifted_forward(self: nn.Module, x: Tensor, *args: Any) -> Tensor:
    return cast("Shift", getattr(self, SLOT)).call(self, x, *args)


def _refuse_state_dict(module: nn.Module, prefix: str, keep_vars: bool) -> None:  # noqa: ARG001
    raise AttachError(
        f"{prefix}weight: cannot be saved while a delta is attached, its factors stand for it",
        fix="detach first, or write a full checkpoint with `bake`",
    )
