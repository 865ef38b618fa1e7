"""Read and write the LoRA that PEFT puts on parameters by name (`target_parameters`), such as stacked experts.

The keys do not name the parameter. PEFT wraps a module once for each of its parameters that is named, in the order in
which the class has them: the factors of the last stand under the module's own path, each one before it one `base_layer`
further in. Of a stack of E matrices the first factor (E·r, in) has one expert's rows after the other's, and of the
second (out, r·E) every E-th column is one expert's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Final, cast

from torch import Tensor, nn

from svdiff_delta.adapters.folders import PEFT_CONFIG as CONFIG
from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.experts import ExpertPart, rows_of
from svdiff_delta.errors import DeltaError, TensorError
from svdiff_delta.format.parameter import Parameter

from .adapter_reader import Adapter
from .key_map import Names
from .lazy_tensors import Modules, Ref, Shape, TensorFile, TensorPart
from .low_rank_factors import LayerRows, StackPlace
from .peft_config import PeftConfig
from .reasons import BIAS, NO_KIND
from .weight_updates import LowRank
from .write_target import Keys, Target

INNER: Final = ".base_layer"
PAIR: Final = frozenset({"up", "down"})
TURNED: Final = (0, 19)
"""The PEFT since which factors of a stack lie as its class stores a matrix; before, all lay as if it were (in, out)."""

FETCH: Final = "fetch both files again"
NO_PAIR: Final = "is not one lora_A and one lora_B, which are all that PEFT puts on a parameter"
ALONE: Final = "is for a single expert that is stored (in, out), which PEFT cannot merge"
SQUARE: Final = (
    "is for square matrices, and nothing says which side is which: PEFT has read it otherwise since 0.19, and "
    f"{CONFIG} does not say by which it was written"
)
NOT_APART: Final = "is for experts whose weights the base's files do not have one by one"


@dataclass(frozen=True)
class _Stack:
    """The factors of one parameter.

    Attributes:
        path: of the module in the class.
        attribute: what the module calls the parameter.
        value: the parameter in the class, without values.
        refs: `up` and `down`.
        scale: the factor on the product.
    """

    path: str
    attribute: str
    value: Tensor
    refs: Mapping[str, Ref]
    scale: float

    @property
    def shape(self) -> Shape:
        """The shape of the parameter."""
        return tuple(self.value.shape)

    @property
    def key(self) -> str:
        """The state-dict key of the parameter in the class."""
        return f"{self.path}.{self.attribute}"

    @property
    def keys(self) -> list[str]:
        """The keys of the file."""
        return [ref.key for ref in self.refs.values()]


def read_parameters(
    modules: Modules, config: PeftConfig, component: str, names: Names, adapter: Adapter
) -> frozenset[str]:
    """Take the updates of parameters that a configuration names, one for each expert of a stack.

    Args:
        modules: the tensors of PEFT's layers by path.
        config: the configuration.
        component: of the base.
        names: the base's.
        adapter: takes the updates.

    Returns:
        The paths that were read.

    Raises:
        TensorError: the file has factors of more or fewer parameters than the configuration names, or of another rank.
    """
    if not config.parameters:
        return frozenset()
    skeleton = names.base.components[component].skeleton
    wrapped, read = _wrapped(modules), set[str]()
    for path, attributes in _named(skeleton, config.parameters):
        if path not in wrapped:
            continue
        _check_count(path, attributes, sorted(wrapped[path]), adapter.what)
        for depth, attribute in enumerate(reversed(attributes)):
            inner = f"{path}{INNER * depth}"
            stack = _stack(skeleton, path, attribute, modules[inner], config)
            adapter.widths[f"{component}.{path}"] = stack.shape[-1]
            _take(stack, skeleton, config, component, names, adapter)
            read.add(inner)
    return frozenset(read)


def _wrapped(modules: Modules) -> dict[str, list[int]]:
    """Return how deep the layers of PEFT lie within each other, by the path of what they are around."""
    found: dict[str, list[int]] = {}
    for path in modules:
        words = path.split(".")
        depth = next((index for index, word in enumerate(reversed(words)) if word != INNER[1:]), 0)
        found.setdefault(path.removesuffix(INNER * depth), []).append(depth)
    return found


def _named(skeleton: nn.Module, ends: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each module with parameters that `target_parameters` names, and what it calls them, in its own order."""
    ends = [f".{end}" for end in ends]
    for path, module in skeleton.named_modules():
        own = (name for name, value in module._parameters.items() if value is not None)
        if found := [name for name in own if f".{path}.{name}".endswith(tuple(ends))]:
            yield path, found


def _check_count(path: str, attributes: Sequence[str], depths: Sequence[int], what: str) -> None:
    if [*depths] != [*range(len(attributes))]:
        raise TensorError(
            f"{what}: has factors for {len(depths)} of the parameters of {path}, and {CONFIG} names {len(attributes)} "
            f"({', '.join(attributes)}): nothing says whose they are",
            fix=FETCH,
        )


def _stack(skeleton: nn.Module, path: str, attribute: str, refs: Mapping[str, Ref], config: PeftConfig) -> _Stack:
    value = cast("Tensor", skeleton.get_submodule(path)._parameters[attribute])
    count, key = value.shape[0] if value.ndim == 3 else 1, f"{path}.{attribute}"
    rank, left = divmod(refs["down"].length if "down" in refs else 0, max(1, count))
    said = config.rank(key)
    if left or (said is not None and refs.keys() >= PAIR and said != rank):
        wanted = "one rank for each" if said is None else f"rank {said:g}"
        down = refs["down"]
        raise TensorError(f"{down}: has {down.length} rows for {count} experts, not {wanted}", fix=FETCH)
    return _Stack(path, attribute, value, refs, config.scale(key, rank))


def _take(
    stack: _Stack, skeleton: nn.Module, config: PeftConfig, component: str, names: Names, adapter: Adapter
) -> None:
    """Take the updates of one parameter, or say why it is left out."""
    if stack.refs.keys() != PAIR:
        adapter.leave(stack.keys, NO_PAIR)
    elif len(stack.shape) == 2:
        _take_matrix(stack, component, names, adapter)
    elif len(stack.shape) != 3:
        adapter.leave(stack.keys, NO_KIND)
    else:
        found = _transposed(stack, config, turned=_says_turned(skeleton.get_submodule(stack.path)))
        if isinstance(found, str):
            adapter.leave(stack.keys, found)
        else:
            _take_experts(stack, component, names, adapter, transposed=found)


def _take_matrix(stack: _Stack, component: str, names: Names, adapter: Adapter) -> None:
    name = names.dotted(component, stack.path, stack.attribute)
    if name is None or stack.attribute.endswith("bias"):
        adapter.leave(stack.keys, BIAS if stack.attribute.endswith("bias") else NO_KIND)
    else:
        adapter.add(name, LowRank(stack.refs["up"], stack.refs["down"], stack.scale), stack.keys)


def _transposed(stack: _Stack, config: PeftConfig, *, turned: bool) -> bool | str:
    """Tell whether the product of a stack's factors is a matrix as it is stored, transposed; or why that is not known.

    Args:
        stack: the factors.
        config: says which PEFT wrote them.
        turned: whether the class stores (in, out) and says so.
    """
    count, rows, columns = stack.shape
    if count == 1 and rows == columns:
        return False  # PEFT merges a single one as it would any matrix
    across = stack.refs["down"].shape[1:] == (rows,) and stack.refs["up"].shape[:1] == (columns,)
    if rows != columns:
        return ALONE if across and count == 1 else across
    if turned:
        return True
    return SQUARE if config.version is None else config.version < TURNED


def _take_experts(stack: _Stack, component: str, names: Names, adapter: Adapter, *, transposed: bool) -> None:
    part, count = names.base.components[component], stack.shape[0]
    rank = stack.refs["down"].length // count
    stored = [part.stored_parts(f"{stack.key}[{number}]") for number in range(count)]
    if not all(stored):
        adapter.leave(stack.keys, NOT_APART)
        return
    for number, keys in enumerate(stored):
        mine, every = slice(number * rank, (number + 1) * rank), slice(number, None, count)
        for key in keys:
            place = part.names.parts.get(key) if part.names else None
            rows = slice(*rows_of(stack.value, place)) if place else slice(None)
            up = (slice(None), every) if transposed else (rows, every)
            down = (mine, rows) if transposed else (mine, slice(None))
            factors = _part(stack.refs["up"], up), _part(stack.refs["down"], down)
            adapter.add(f"{component}.{key}", LowRank(*factors, scale=stack.scale, transposed=transposed), stack.keys)


def _part(ref: Ref, at: tuple[slice, slice]) -> Ref:
    return Ref(TensorPart(cast("TensorFile", ref.tensors), at), ref.key)


class ExpertKeys:
    """Places of the updates of stacked experts in a file of PEFT's.

    Args:
        target: the file, which knows the weights that change.
        prefix: what stands before the path of a module.
    """

    def __init__(self, target: Target, prefix: str) -> None:
        self._target, self._prefix = target, prefix

    def place(self, component: str, expert: ExpertPart, parameter: Parameter) -> Keys | str:
        """Return where the update of one expert's weight stands, or why it has no place."""
        path, _, attribute = expert.stack.rpartition(".")
        module = self._target.names.base.components[component].skeleton.get_submodule(path)
        count, turned = len(cast("Tensor", module._parameters[attribute])), _says_turned(module)
        transposed = (parameter.axis == 1) != turned
        if count == 1 and turned:
            return ALONE
        if expert.parts > 1 and transposed:
            return "is joined with others by its inputs, for which adapters have no place"
        own = self._stacks[component]
        after = [*module._parameters][[*module._parameters].index(attribute) + 1 :]
        inner = f"{self._prefix}{path}{INNER * sum(f'{path}.{each}' in own for each in after)}"
        size, rows = parameter.shape[0], None
        if expert.parts > 1:
            rows = LayerRows(expert.part * size, (expert.part + 1) * size, expert.parts * size)
        stack = StackPlace(expert.number, count, rows, transposed)
        return Keys(f"{inner}.lora_B.weight", f"{inner}.lora_A.weight", stack=stack, file=component)

    @cached_property
    def _stacks(self) -> dict[str, set[str]]:
        """The keys in the class of the stacked parameters that change, by component."""
        found: dict[str, set[str]] = {}
        for name in self._target.weights:
            if expert := self._target.expert(name):
                found.setdefault(name.partition(".")[0], set()).add(expert.stack)
        return found


def has_module(component: Component, path: str) -> bool:
    """Tell whether a component's class has a module that PEFT wraps, once or more often."""
    with suppress(AttributeError, DeltaError):
        component.skeleton.get_submodule(path.replace(INNER, ""))
        return True
    return False


def _says_turned(module: nn.Module) -> bool:
    """Tell whether a class stores the matrices of its experts (in, out), and says so where PEFT looks for it."""
    return getattr(module, "is_transposed", False) is True
