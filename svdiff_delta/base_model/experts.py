"""Experts whose weights a layer holds in one stacked tensor: which layers do, how a slice lies, and one as a layer.

Mixtures of experts in transformers, and in diffusers' NucleusMoE, keep the weights of all experts of a layer in one
tensor of three dimensions. Each slice is a parameter of its own (spec, sections 4.1 and 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, Final, NamedTuple, cast
from weakref import WeakValueDictionary

from torch import Tensor, nn

AXES: Final[Mapping[str, int]] = {
    "InklingSharedExperts": 0,
    "JetMoeParallelExperts": 0,
    "Llama4TextExperts": 1,
    "LongcatFlashExperts": 0,
    "Step3p7Experts": 0,
    "SwiGLUExperts": 1,
}
"""The axis of output channels of a slice, by the classes of transformers that do not say it themselves (5.23), and of
diffusers (0.42)."""


class ExpertPart(NamedTuple):
    """Where a live model has one expert's weight: a slice of a stacked parameter, or one of several joined in it.

    Attributes:
        stack: the state-dict key of the stacked parameter.
        number: the expert.
        part: which of the weights that are joined row by row, from 0.
        parts: how many are joined.
    """

    stack: str
    number: int
    part: int = 0
    parts: int = 1


def stacks(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the attributes of an experts layer that hold stacked weights, each with the axis of a slice; else nothing.

    What is not known to be one is none: nothing but its class says how a slice lies.
    """
    axis = _axis(module)
    for attribute, weight in module._parameters.items() if axis is not None else ():
        if weight is not None and weight.ndim == 3:
            yield attribute, cast("int", axis)


def _axis(module: nn.Module) -> int | None:
    if not type(module).__module__.startswith(("transformers.", "diffusers.")):
        return None
    said = module.__dict__.get("is_transposed")  # transformers' `use_experts_implementation` sets it
    if isinstance(said, bool) and "has_gate" in module.__dict__:
        return int(said)
    return AXES.get(type(module).__name__)


class ExpertWeight(nn.Module):
    """One expert's weight as a layer that computes nothing: its `weight` is a view of the stacked parameter.

    Args:
        owner: the experts layer.
        attribute: what it calls the stacked parameter.
        place: which expert, and which part.
        axis: the axis of output channels.
    """

    def __init__(self, owner: nn.Module, attribute: str, place: ExpertPart, axis: int) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # no module within this one
        self.attribute, self.place, self.axis = attribute, place, axis
        self.__dict__["_parameters"] = _View(owner, attribute, place)

    @property
    def stack(self) -> nn.Parameter:
        """The stacked parameter, which moves and offloading may put another one in the place of."""
        return cast("nn.Parameter", self.owner._parameters[self.attribute])

    @property
    def owner(self) -> nn.Module:
        """The experts layer."""
        return cast("nn.Module", self.__dict__["owner"])

    def view(self, stack: Tensor) -> Tensor:
        """Return what this expert's weight is in a stacked tensor of this shape."""
        return view_of(stack, self.place)


class _View(dict[str, Any]):
    """The parameters of an `ExpertWeight`: its weight alone, looked up in the stack whenever it is asked for."""

    def __init__(self, owner: nn.Module, attribute: str, place: ExpertPart) -> None:
        super().__init__()
        self._owner, self._attribute, self._place = owner, attribute, place

    def _weight(self) -> Tensor:
        return view_of(cast("Tensor", self._owner._parameters[self._attribute]), self._place)

    def __contains__(self, key: object) -> bool:
        return key == "weight"

    def __getitem__(self, key: str) -> Tensor:
        if key != "weight":
            raise KeyError(key)
        return self._weight()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the weight, or the default for any other key."""
        return self._weight() if key == "weight" else default

    def items(self) -> Any:
        """Return the weight with its key."""
        return {"weight": self._weight()}.items()

    def values(self) -> Any:
        """Return the weight alone."""
        return [self._weight()]


def view_of(stack: Tensor, place: ExpertPart) -> Tensor:
    """Return the part of a stacked tensor that is one expert's weight, as a view."""
    first, last = rows_of(stack, place)
    return stack[place.number] if place.parts == 1 else stack[place.number, first:last]


def rows_of(stack: Tensor, place: ExpertPart) -> tuple[int, int]:
    """Return the first row of a weight within its slice, and the one behind the last: parts are of one size."""
    rows = stack.shape[1] // place.parts
    return place.part * rows, (place.part + 1) * rows


_LAYERS: Final[WeakValueDictionary[tuple[int, str, ExpertPart], ExpertWeight]] = WeakValueDictionary()
"""Those that somebody holds, by their owner's identity: so one that has a delta on it is found again."""

_LOCK: Final = Lock()


def expert_weight(owner: nn.Module, attribute: str, place: ExpertPart, axis: int) -> ExpertWeight:
    """Return one expert's weight as a layer; the same one as long as anybody holds it."""
    key = id(owner), attribute, place._replace(stack="")
    with _LOCK:
        found = _LAYERS.get(key)
        if found is None:
            _LAYERS[key] = found = ExpertWeight(owner, attribute, key[2], axis)
    return found


def held_weights(model: nn.Module) -> list[ExpertWeight]:
    """Return the experts' weights of a model that somebody holds as layers."""
    with _LOCK:
        held = list(_LAYERS.values())
    owners = set(model.modules()) if held else set()
    return [each for each in held if each.owner in owners]
