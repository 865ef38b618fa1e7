"""Find the components of a pipeline, and the layers in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, cast

from torch import Tensor, nn

from svdiff_delta.base_model.component import aliases
from svdiff_delta.base_model.experts import ExpertPart, ExpertWeight, expert_weight, stacks
from svdiff_delta.base_model.live_names import LiveNames, renamed
from svdiff_delta.base_model.opened import Base, component_of
from svdiff_delta.base_model.slots import slot_of
from svdiff_delta.errors import AttachError
from svdiff_delta.format.stacked import slice_of

from .quantized import PLAIN

LiveKeys = Mapping[str, str | ExpertPart]
"""The keys of live models by parameter name; of one expert in a stack, where it has it."""

NONE: Final[LiveKeys] = {}


def components(target: object, wanted: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules of a pipeline or model by component name.

    Args:
        target: a diffusers pipeline, or a model.
        wanted: the components that a delta shifts; a model on its own takes the name of the only one.

    Raises:
        AttachError: a wanted component is not there.
    """
    wanted = sorted(set(wanted))
    if isinstance(target, nn.Module):
        cls = type(target)
        name = wanted[0] if len(wanted) == 1 else slot_of(cls.__name__, cls.__module__.partition(".")[0])
        found = {name: target}
    else:
        parts = getattr(target, "components", None)
        if not isinstance(parts, Mapping):
            raise AttachError(f"{type(target).__name__} is neither a pipeline nor a model")
        found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    if lacking := [name for name in wanted if name not in found]:
        raise AttachError(
            f"the delta shifts {lacking[0]}, and the model has only {', '.join(sorted(found))}",
            fix="attach to the pipeline that has it, or `select` the components it has",
        )
    return found


def live_keys(models: Mapping[str, nn.Module], base: Base | None, slots: Iterable[str]) -> LiveKeys:
    """Return the keys that live models have parameters under, by name, where the base's files have others.

    Args:
        models: the models by component.
        base: the files that they were loaded from; nothing is known without.
        slots: the components to look at.
    """
    found: dict[str, str | ExpertPart] = {}
    for slot in sorted({*slots}):
        part = component_of(base, slot) if base is not None else None
        if part is None:
            continue
        names = LiveNames(models[slot], part.location, len(part.files))
        found |= {f"{slot}.{key}": live for key, live in names.live.items() if live != key}
        found |= {f"{slot}.{key}": place for key, place in names.parts.items()}
    return found


def layer(models: Mapping[str, nn.Module], name: str, keys: LiveKeys = NONE) -> nn.Module:
    """Return the module whose weight a parameter names.

    Args:
        models: the models by component.
        name: the parameter, by its key in the base's files.
        keys: what `live_keys` returns, where files are known; else the model's library says what it makes of a key.

    Raises:
        AttachError: there is none.
    """
    slot, _, key = name.partition(".")
    indexed, without = slice_of(key), None
    stack = indexed.stack if indexed else key
    for candidate in candidates(models[slot], stack, keys.get(f"{slot}.{stack}")):
        if indexed or not isinstance(candidate, str):
            place = ExpertPart(candidate, indexed.number) if indexed and isinstance(candidate, str) else candidate
            if isinstance(place, ExpertPart) and (found := _expert(models[slot], place, name)):
                return found
            continue
        path, _, attribute = candidate.rpartition(".")
        try:
            module = models[slot].get_submodule(path)
        except AttributeError:
            continue
        module = cast("nn.Module", getattr(module, "base_layer", module))  # a layer that PEFT has wrapped
        if attribute == "weight" and isinstance(module._parameters.get("weight"), Tensor):
            return module
        without = module
    if without is not None:
        raise AttachError(
            f"{name}: {type(without).__name__} holds no parameter `weight` of its own; it is quantized or "
            "parametrized by some library",
            fix="load the model unquantized, in F16, BF16 or F32",
        )
    raise AttachError(f"{name}: the model has no such layer", fix="attach to the model that the delta was made for")


def candidates(model: nn.Module, key: str, live: str | ExpertPart | None = None) -> Iterator[str | ExpertPart]:
    """Yield the keys under which a live model may have the parameter that files call `key`, the likeliest first.

    Args:
        model: the live model.
        key: the key in the files.
        live: its key in the model, where files are known and it is another one.
    """
    if live is not None:
        yield live
    yield from aliases(key)
    for found in renamed(model, [key]):
        if found.part is not None:
            yield found.part
        elif not found.change:
            yield found.live


def _expert(model: nn.Module, place: ExpertPart, name: str) -> ExpertWeight | None:
    """Return one expert's weight in a live model as a layer; None if there is no such stack of experts.

    Raises:
        AttachError: the stack has fewer experts, or is quantized or sharded.
    """
    path, _, attribute = place.stack.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return None
    owner = cast("nn.Module", getattr(owner, "base_layer", owner))  # a layer that PEFT has wrapped
    axis, stack = dict(stacks(owner)).get(attribute), owner._parameters.get(attribute)
    if axis is None or stack is None:
        return None
    if type(stack) not in PLAIN or not stack.is_floating_point():
        raise AttachError(
            f"{name}: the live weights of all experts are quantized or sharded ({type(stack).__name__})",
            fix="load the model in F16, BF16 or F32, or use `bake`",
        )
    if place.number >= len(stack) or stack.shape[1] % place.parts:
        raise AttachError(
            f"{name}: the model has {len(stack)} experts there, of shape {list(stack.shape[1:])}",
            fix="attach to the model that the delta was made for",
        )
    return expert_weight(owner, attribute, place, axis)
