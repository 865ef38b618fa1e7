"""Show others the weight W + ΔW of a shifted layer, computed by the operation that reads it.

A forward may read a layer's weight without calling the layer: attention pools hand it to one function for all heads,
gated convolutions of language models to a kernel of their own. What they read must have the layer's δ in it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from svdiff_delta.base_model.experts import ExpertWeight, stacks
from svdiff_delta.errors import AttachError

from .quantized import quantized_weight
from .sharded import asked_by_fsdp, is_sharded

if TYPE_CHECKING:
    from .shift import Shift
    from .stacked_shift import StackedShift

SLOT: Final = "svdiff_shift"
"""The attribute that marks a shifted layer, and holds its `Shift` if that computes the layer's output."""

READ: Final = "svdiff_read"
"""The attribute that holds, by the name of a weight, what is called whenever it is read without a `Shift`."""

VALUES: Final = frozenset({"T", "mT", "H", "mH", "real", "imag"})
"""Properties that need W + ΔW; all others are told by the parameter itself."""

ABOUT: Final = frozenset(
    {"__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point"}
    | {"is_inference", "is_shared", "ndimension", "nelement", "numel", "size", "stride", "storage_offset"}
    | {"requires_grad_", "untyped_storage", "data_ptr"}
)
"""Methods that tell of a tensor, not of its values."""

IN_PLACE: Final = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift", "irshift"}
    | {"setitem"}
)


class LiveWeight(Tensor):
    """The weight of a shifted layer. Operations get W + ΔW, with gradients to δ; nothing can be written into it.

    Its own storage is one NaN seen as many: code that gets past torch's dispatch to it shows at once.
    """

    layer: nn.Module
    attribute: str
    graph: bool

    @staticmethod
    def of(layer: nn.Module, attribute: str = "weight", *, graph: bool = True) -> LiveWeight:
        """Return the weight of a layer that is shifted.

        Args:
            layer: the layer.
            attribute: what it calls the weight; an experts layer has stacked ones.
            graph: whether gradients flow from it to δ; `weight.data` has none.
        """
        weight = cast("nn.Parameter", layer._parameters[attribute])
        placeholder = torch.full((), torch.nan, dtype=weight.dtype, device=weight.device).expand(weight.shape)
        found = placeholder.as_subclass(LiveWeight)
        found.layer, found.attribute, found.graph = layer, attribute, graph
        return found

    _is_param = True  # `isinstance(layer.weight, nn.Parameter)` asks for this

    @property
    def own(self) -> nn.Parameter:
        """The parameter itself."""
        return cast("nn.Parameter", self.layer._parameters[self.attribute])

    def whole(self, number: int | None = None) -> Tensor:
        """Return W + ΔW in the weight's shape and dtype.

        Args:
            number: of which expert, where the weight is a stacked one and others are not wanted.

        Raises:
            AttachError: the layer is shifted no more.
            InputError: every sample has a δ of its own.
        """
        shift = cast("Shift | StackedShift | None", self.layer._modules.get(SLOT))
        if shift is None:
            raise AttachError("this weight was read while a delta was attached, which is off now", fix="read it again")
        with torch._C.DisableTorchFunctionSubclass():
            found = shift.read_weight(self.layer, self.attribute, number)
        return found if self.graph else found.detach()

    def expert(self, index: Any) -> int | None:
        """Return the one expert that an index of a stacked weight names; None for any other weight or index."""
        if isinstance(index, Tensor):
            whole = index.ndim == 0 and index.dtype in (torch.int64, torch.int32) and index.device.type != "meta"
            index = int(index) if whole else None
        if self.own.ndim != 3 or not isinstance(index, int) or isinstance(index, bool):
            return None
        count = len(self.own)
        return index % count if -count <= index < count else None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do an operation on W + ΔW, or on the parameter itself if it only asks about it."""
        name, own = func.__name__, args[0] if args else None
        if isinstance(own, LiveWeight):
            attribute = getattr(getattr(func, "__self__", None), "__name__", "") if name.startswith("__") else ""
            if (name, attribute) == ("__get__", "data"):
                return LiveWeight.of(own.layer, own.attribute, graph=False)
            if _writes(name) or (name, attribute) == ("__set__", "data"):
                raise _refusal(own.layer)
            if name in ABOUT or (name in ("__get__", "__set__", "__delete__") and attribute not in VALUES):
                return func(own.own, *args[1:], **(kwargs or {}))
            if name == "__getitem__" and (number := own.expert(args[1])) is not None:
                return own.whole(number)
        if any(isinstance(out, LiveWeight) for out in _listed((kwargs or {}).get("out"))):
            raise AttachError("nothing can be written into the weight of a shifted layer", fix="detach the delta first")
        return func(*tree_map(_whole, args), **tree_map(_whole, dict(kwargs or {})))


def _writes(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__") and name not in ABOUT) or name.strip("_") in IN_PLACE


def _whole(value: Any) -> Any:
    return value.whole() if isinstance(value, LiveWeight) else value


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _refusal(layer: nn.Module) -> AttachError:
    shift = cast("Shift | None", layer._modules.get(SLOT))
    name = shift.name if shift is not None else "the layer"
    return AttachError(
        f"{name}: the weight cannot be written to while a delta computes the layer's output",
        fix='detach the delta first, or attach it with `mode="fused"`',
    )


_WATCHED: Final[dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]]] = {}

WEIGHT: Final = ("weight",)
"""The parameter that layers of all kinds but experts have."""


def watched(cls: type[nn.Module], attributes: tuple[str, ...] = WEIGHT) -> type[nn.Module]:
    """Return a class that is the same but for its weights, which are `LiveWeight` while the layer is shifted."""
    if (cls, attributes) in _WATCHED:
        return _WATCHED[cls, attributes]

    def reduce(module: nn.Module, protocol: object) -> Any:  # noqa: ARG001
        raise pickle_refusal()

    def deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        create, given, state, *_ = cast("Any", super(own, module)).__reduce_ex__(4)
        twin: nn.Module = create(*given)
        memo[id(module)] = twin
        twin.__setstate__(copy.deepcopy(state, memo))
        return twin

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    reads = {attribute: property(_reader(attribute)) for attribute in attributes}
    added = {**reads, "__reduce_ex__": reduce, "svdiff_class": cls}
    if not hasattr(cls, "__deepcopy__"):
        added["__deepcopy__"] = deepcopy
    own = type(cls.__name__, (cls,), {**names, **added})
    return _WATCHED.setdefault((cls, attributes), own)


def _reader(attribute: str) -> Callable[[nn.Module], Tensor]:
    """Return what gives a weight of a watched layer: W + ΔW where a shift computes it."""

    def read(module: nn.Module) -> Tensor:
        if READ in module.__dict__:
            for note in module.__dict__[READ].get(attribute, ()):
                note()
        shift: Any = module._modules.get(SLOT)
        own = cast("Tensor", module._parameters[attribute])
        if shift is None or not shift.holds(attribute) or _is_opaque(module):
            return own
        if not torch.compiler.is_compiling() and is_sharded(own) and asked_by_fsdp(sys._getframe(1)):
            return own
        if torch.compiler.is_compiling() and shift.stacked:  # nobody is to look at a placeholder in a graph
            return cast("Tensor", shift.read_weight(module, attribute))
        return LiveWeight.of(module, attribute)

    return read


def _is_opaque(module: nn.Module) -> bool:
    """Tell whether only the layer's own class, whose methods ask for its weight too, can use what is stored there."""
    found = quantized_weight(module)
    return found is not None and found.opaque


def pickle_refusal() -> AttachError:
    """Return the error that says why a model cannot be pickled now."""
    return AttachError(
        "a model cannot be pickled or saved whole while a delta is on it",
        fix="detach the delta first; `handle.delta()` and the model's `state_dict()` can be saved before",
    )


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a layer has without a delta."""
    return cast("type[nn.Module]", getattr(type(module), "svdiff_class", type(module)))


def watch(module: nn.Module, attributes: tuple[str, ...] = WEIGHT) -> Callable[[], None]:
    """Let a shifted layer's weights be W + ΔW to whoever reads them; return what undoes that."""
    cls = own_class(module)
    module.__class__ = watched(cls, attributes)

    def undo() -> None:
        module.__class__ = cls

    return undo


def note_reads(module: nn.Module, note: Callable[[], object]) -> Callable[[], None]:
    """Let something be called whenever anyone, its own forward too, reads a layer's weight; return what undoes that."""
    owner, attribute = module, "weight"
    attributes: tuple[str, ...] = WEIGHT
    if isinstance(module, ExpertWeight):
        owner, attribute, attributes = module.owner, module.attribute, tuple(name for name, _ in stacks(module.owner))
    owner.__dict__.setdefault(READ, {}).setdefault(attribute, []).append(note)
    watch(owner, attributes)
    return lambda: unwatch(owner)


def unwatch(owner: nn.Module) -> None:
    """Let nothing be called any more when a layer's weights are read, and let it have its own class."""
    if owner._modules.get(SLOT) is None:  # others may shift experts of the same layer
        owner.__class__ = own_class(owner)
    owner.__dict__.pop(READ, None)
