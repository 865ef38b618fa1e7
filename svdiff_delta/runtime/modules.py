"""Find the components of a pipeline, and the layers in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn

from svdiff_delta.base_model.component import SLOTS, aliases
from svdiff_delta.errors import AttachError


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
        name = wanted[0] if len(wanted) == 1 else SLOTS.get(type(target).__name__, "model")
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


def layer(models: Mapping[str, nn.Module], name: str) -> nn.Module:
    """Return the module whose weight a parameter names.

    Raises:
        AttachError: there is none.
    """
    slot, _, key = name.partition(".")
    without = None
    for candidate in aliases(key):
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
