"""Find the layer of a live model for every shifted parameter, and check its class and values before any change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, TypeVar, cast

from torch import Tensor, nn

from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.base_model.kinds import kind_of, weight_of
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import AttachError, BaseMismatchError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import combine_parameters, note_weight, unite
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import READER_TOLERANCE, Basis, Runs, find_runs, matricize
from svdiff_delta.svd.fingerprint import fingerprint_stored
from svdiff_delta.svd.gpu_basis import round_for
from svdiff_delta.svd.prepare import Prepared, Weights, verify_and_prepare
from svdiff_delta.svd.side_by_side import attempting, map_weights, without_errors, workers_for
from svdiff_delta.svd.together import Wanted, is_missing, run_prepared
from svdiff_delta.svd.verify import verify_base

from .gain_map import Factors, additive
from .modules import LiveKeys, layer, live_keys
from .obstacles import check_bases, check_projection, check_storage, fusers_of, is_shifted, parents_of
from .original_weights import LiveWeights, cast_as_live, cast_to, device_of, find_base, live_values
from .quantized import quantized_weight
from .quantized.origin import check_origin
from .stored_weight import StoredWeight

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """One weight that deltas shift on a live model.

    Attributes:
        name: the parameter.
        module: the layer.
        twins: the other layers of the model that the same weight is tied to.
        shared: whether other modules own the weight too, so that it must stay where it is.
        parameter: what the deltas say about the weight, its runs widened to cover those found here.
        runs: the runs of its singular values at a reader's tolerance, on which every δ must be projected.
        read: reads the weight as its basis was made from it, on the CPU.
        cast: makes of that what it was on the live model.
        stored: whether `read` reads a file.
        cache: where its basis is.
        fusers: the layers, each with the attention layer that could copy its weight into a fused projection.
    """

    name: str
    module: nn.Module
    twins: tuple[nn.Module, ...]
    shared: bool
    parameter: Parameter
    runs: Runs
    read: Callable[[], Tensor]
    cast: Callable[[Tensor], Tensor]
    stored: bool
    cache: BasisCache
    fusers: tuple[tuple[nn.Module, nn.Module], ...] = ()

    @property
    def component(self) -> str:
        """The name of the model that the layer is in."""
        return self.name.partition(".")[0]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The layer and its twins."""
        return self.module, *self.twins

    @property
    def offloaded(self) -> bool:
        """True if the weight is in memory only while the layer computes."""
        return weight_of(self.module).device.type == "meta"

    def live(self) -> Tensor:
        """Return the weight as it was on the live model, on the CPU."""
        return self.cast(self.read())

    def basis(self) -> Basis:
        """Return the basis of a spectral weight."""
        key = self.parameter.fingerprint
        found = self.cache.get(key)
        if found is None:
            rounded = round_for(self.read(), self.parameter.dtype, self.cache.device)
            found = self.cache.obtain(key, rounded, self.parameter.axis)
        return found

    def prepared(self) -> Prepared:
        """Return the weight made ready for δ, with its basis if it has one."""
        return Prepared(self.parameter, self.basis() if self.parameter.kind == "spectral" else None, self.read)

    def matrix(self) -> Tensor:
        """Return the live weight as a matrix."""
        return matricize(self.live(), self.parameter.axis)

    def additive(self) -> Factors:
        """Return what stands for ΔW in additive form, computed on the layer's device."""
        return additive(self.prepared(), self.basis().to(device_of(self.module)))


class _Layer(NamedTuple):
    """The layer of a parameter, checked; twins, `shared` and fusers as in `TargetLayer`."""

    module: nn.Module
    twins: tuple[nn.Module, ...]
    shared: bool
    fusers: tuple[tuple[nn.Module, nn.Module], ...]


def find_places(
    target: object, models: Mapping[str, nn.Module], deltas: Mapping[str, Delta], base: Base | None, cache: BasisCache
) -> dict[str, TargetLayer]:
    """Return all weights that deltas shift in the models of a target, by sorted name.

    What can be told without reading is checked first. Then each live weight is read once, several at once, and each
    entry of the cache once.

    Args:
        target: a diffusers pipeline, one of its models, or a transformers model.
        models: its models by component.
        deltas: what is to be put on it, by the names that errors use.
        base: where the original weights are; looked for if not given.
        cache: where bases are kept.

    Raises:
        AttachError, BaseMismatchError, BaseError, TensorError: as `attach`.
    """
    given = list(deltas.values())
    parameters = combine_parameters(given)
    named, base = base, base or find_base(target, models, [name.partition(".")[0] for name in parameters])
    keys = live_keys(models, base, {name.partition(".")[0] for name in parameters})
    check_bases(models, parameters, given=named, found=base, keys=keys)
    verified = verify_base(base, given) if base is not None else None
    layers = _find_layers(models, parameters, keys)
    sizes = {name: prod(parameter.shape) for name, parameter in parameters.items()}
    readers = map_weights(sizes, lambda name: _readers(name, layers[name].module, base, parameters[name]))

    def prepare(name: str, cache: BasisCache) -> Prepared:
        return verified.prepare(name, cache) if verified else _prepare_live(models, name, deltas, cache)

    def place(name: str, wait: bool) -> TargetLayer:
        here = prepare(name, cache if wait else cache.impatient())
        united = unite({name: parameters[name]}, {name: here.parameter})[name]
        runs = find_runs(here.basis.sigma, READER_TOLERANCE) if here.basis else Runs((), 0)
        module, twins, shared, fusers = layers[name]
        return TargetLayer(
            name, module, twins, shared, united, runs, *readers[name], base is not None, cache, fusers=fusers
        )

    try:
        wanted = {name: Wanted.of(each) for name, each in parameters.items()}
        weights: Weights = LiveWeights(models) if base is None else base
        workers = workers_for(cache) if is_missing(parameters.values(), cache) else None
        found = run_prepared(weights, wanted, cache, attempting(place), workers=workers)
        return without_errors({name: found[name] for name in parameters})
    except BaseMismatchError:
        if base is None:
            verify_base(LiveWeights(models), given)  # says which others differ too
        raise


def _find_layers(
    models: Mapping[str, nn.Module], parameters: Mapping[str, Parameter], keys: LiveKeys
) -> dict[str, _Layer]:
    """Return the layer of every parameter, by name.

    Raises:
        AttachError: one is not there, cannot be shifted as a delta says, or is named twice.
    """
    owners, parents = _owners(models), parents_of(models.values())
    found: dict[str, _Layer] = {}
    taken: dict[tuple[int, ...], str] = {}
    joined: dict[tuple[int, int], tuple[int, str]] = {}
    for name, parameter in parameters.items():
        module = layer(models, name, keys)
        _note(taken, joined, name, module)
        sharers = _sharers(name, module, owners)
        twins = tuple(other for slot, other in sharers if other is not module and slot == name.partition(".")[0])
        for each in (module, *twins):
            check_layer(name, each, parameter)
            check_projection(name, each, parents)
        fusers = tuple((each, parent) for each in (module, *twins) for parent in fusers_of(each, parents))
        found[name] = _Layer(module, twins, len(sharers) > 1, fusers)
    return found


def _sharers(
    name: str, module: nn.Module, owners: Mapping[int, list[tuple[str, nn.Module]]]
) -> list[tuple[str, nn.Module]]:
    """Return the modules, each with its component, that own a layer's weight.

    Raises:
        AttachError: it is an expert's, and several layers own the stack.
    """
    if not isinstance(module, ExpertWeight):
        return owners.get(id(weight_of(module)), [])
    if len(owners.get(id(module.stack), [])) > 1:
        raise AttachError(f"{name}: several layers of the model share these experts", fix="use `bake`")
    return []


def _note(
    taken: dict[tuple[int, ...], str], joined: dict[tuple[int, int], tuple[int, str]], name: str, module: nn.Module
) -> None:
    """Note the name of a weight, by what tells it from others; of an expert's, what part it is of how many too.

    Raises:
        AttachError: another name of it was noted before, or one of an expert's weight that has rows in common.
    """
    if not isinstance(module, ExpertWeight):
        note_weight(taken, (id(weight_of(module)),), name, AttachError)
        return
    expert, place = (id(module.stack), module.place.number), module.place
    parts, other = joined.setdefault(expert, (place.parts, name))
    if parts != place.parts:
        note_weight({expert: other}, expert, name, AttachError)
    note_weight(taken, (*expert, place.part, place.parts), name, AttachError)


def check_layer(name: str, module: nn.Module, parameter: Parameter) -> None:
    """Check that a layer is of a kind that can be shifted live as a delta says, and is not shifted yet.

    Raises:
        AttachError: it is not.
    """
    if is_shifted(module):
        raise AttachError(
            f"{name}: has a delta on it already",
            fix="`add` to the handle that shifts it (`handle_of` returns it), or detach it",
        )
    found = kind_of(module, on_request=True)
    check_storage(name, module)
    if found is None or getattr(module, "max_norm", None) is not None:
        raise AttachError(f"{name}: layers of class {type(module).__name__} cannot be shifted live", fix="use `bake`")
    if isinstance(module, ExpertWeight) and weight_of(module).shape != parameter.shape:
        raise AttachError(
            f"{name}: the delta was made for a weight of shape {list(parameter.shape)}, the model's experts have "
            f"{list(weight_of(module).shape)}",
            fix="attach to the model that the delta was made for",
        )
    if found != (parameter.kind, parameter.axis):
        raise AttachError(
            f"{name}: the delta says {parameter.kind} on axis {parameter.axis}, "
            f"{type(module).__name__} is {found[0]} on axis {found[1]}"
        )


def _prepare_live(
    models: Mapping[str, nn.Module], name: str, deltas: Mapping[str, Delta], cache: BasisCache
) -> Prepared:
    """Return a live weight that deltas shift, verified.

    They agree among themselves, so the first one that names it speaks for all.
    """
    delta = next(delta for delta in deltas.values() if name in delta)
    return verify_and_prepare(LiveWeights(models), name, delta, cache)


def _readers(
    name: str, module: nn.Module, base: Base | None, parameter: Parameter
) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """Return the function that reads a weight as it was stored, and the one that casts it as the live model does.

    Raises:
        AttachError: the live weight is not the file's.
    """
    if base is None:
        kept = cast("Tensor", live_values(module))  # its own storage, which outlives the parameter
        return (lambda: kept), (lambda weight: weight)
    values = base.read(name)

    def is_same(values: Tensor) -> bool:
        identity = fingerprint_stored(values, name, parameter.axis, parameter.dtype)
        return identity.fingerprint == parameter.fingerprint

    read = StoredWeight(base, name, values, is_same).read
    if (stored := quantized_weight(module)) is not None:
        check_origin(name, stored, values)
        return read, lambda weight: weight
    casts = cast_as_live(name, module, values)
    return read, lambda weight: cast_to(weight, casts)


def _owners(models: Mapping[str, nn.Module]) -> dict[int, list[tuple[str, nn.Module]]]:
    """Return the modules, each with its component, that own each `weight`, by the identity of the parameter."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for slot, model in models.items():
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    found.setdefault(id(parameter), []).append((slot, module))
    return found
