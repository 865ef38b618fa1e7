"""Find the kind and axis of a weight by its module's class, which say how it is shifted (spec, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn

from svdiff_delta.format.parameter import Kind
from svdiff_delta.format.stacked import Slice, slice_of

from .experts import ExpertWeight, stacks

if TYPE_CHECKING:
    from .opened import Base

SPECTRAL: Final[Mapping[type[nn.Module], int]] = {
    nn.Linear: 0,
    nn.Conv1d: 0,
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}
"""The axis of output channels, by class; subclasses count as their parent."""

ON_REQUEST: Final[Mapping[type[nn.Module], int]] = {nn.Embedding: 0}
"""Spectral too, but only where they are named."""

NORMS: Final[tuple[type[nn.Module], ...]] = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def kind_of(module: nn.Module, *, on_request: bool = False) -> tuple[Kind, int] | None:
    """Return kind and axis of a module's `weight`, or None if it has none that can be shifted.

    Args:
        module: any module.
        on_request: whether to count embeddings.
    """
    if isinstance(module, ExpertWeight):
        return "spectral", module.axis
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        return None
    tables = [SPECTRAL, ON_REQUEST] if on_request else [SPECTRAL]
    for table in tables:
        for cls, axis in table.items():
            if isinstance(module, cls):
                return "spectral", axis
    # diffusers and transformers have RMSNorm and LayerNorm classes of their own.
    if isinstance(module, NORMS) or type(module).__name__.endswith(("RMSNorm", "LayerNorm")):
        return "elementwise", 0
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return "spectral", 1  # GPT-2's linear layer, stored transposed
    return None


def weight_of(module: nn.Module) -> nn.Parameter:
    """Return a layer's own weight parameter; the attribute `weight` of a live layer is W + ΔW (`LiveWeight`)."""
    return cast("nn.Parameter", module._parameters["weight"])


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether a layer's class computes something else than the class that its kind comes from.

    Causal convolutions pad by themselves, some norms multiply by 1 + w, some embeddings scale what they look up: of
    such a class only its own forward is right.
    """
    if type(module).__name__ == "Conv1D":
        return False
    parents = (cls for cls in (*SPECTRAL, *ON_REQUEST, *NORMS) if isinstance(module, cls))
    parent = next(parents, None)
    methods = ("forward", "_conv_forward", "_output_padding")
    return parent is None or any(
        getattr(type(module), name, None) is not getattr(parent, name, None) for name in methods
    )


def shiftable(model: nn.Module, *, on_request: bool = False) -> Iterator[tuple[str, Kind, int]]:
    """Yield (state-dict key, kind, axis) of every weight of a model that can be shifted.

    Multi-head attention of torch itself reads its projections without calling them, so they are left out. An output
    layer that is tied to an embedding counts as one. Experts whose weights are stacked count one by one.
    """
    skipped = {
        child for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.children()
    }
    embeddings = {id(module._parameters["weight"]) for module in model.modules() if isinstance(module, nn.Embedding)}
    for path, module in model.named_modules():
        if module in skipped or not (found := kind_of(module, on_request=on_request)):
            continue
        if on_request or id(module._parameters.get("weight")) not in embeddings:
            yield f"{path}.weight", *found
    yield from _experts(model)


@lru_cache(maxsize=16)
def class_kinds(skeleton: nn.Module, *, on_request: bool = False) -> tuple[tuple[str, Kind, int], ...]:
    """Return what `shiftable` yields of a class on the meta device, which nobody changes."""
    return tuple(shiftable(skeleton, on_request=on_request))


def _experts(model: nn.Module) -> Iterator[tuple[str, Kind, int]]:
    """Yield (state-dict key and index, kind, axis) of each expert whose weight is a slice of a stacked tensor."""
    for path, module in model.named_modules():
        for attribute, axis in stacks(module):
            stack = f"{path}.{attribute}" if path else attribute
            for index in range(len(cast("nn.Parameter", module._parameters[attribute]))):
                yield str(Slice(stack, index)), "spectral", axis


@lru_cache(maxsize=16)
def class_shapes(skeleton: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a class's parameters by state-dict key, and those of slices of stacked ones."""
    found = {key: tuple(value.shape) for key, value in skeleton.named_parameters(remove_duplicate=False)}
    return MappingProxyType(found | {key: found[whole_key(key)][1:] for key, _, _ in _experts(skeleton)})


def whole_key(key: str) -> str:
    """Return the key of the tensor that a key is of, or is a slice of."""
    part = slice_of(key)
    return part.stack if part else key


def base_kinds(base: Base, *, on_request: bool = False) -> dict[str, tuple[Kind, int]]:
    """Return kind and axis of every weight of a base that can be shifted, by parameter name.

    The classes are built on torch's meta device from the configuration, so no weight is read.

    Raises:
        BaseError: the class of a component is not known.
        MissingExtraError: diffusers or transformers is needed and not installed.
    """
    found: dict[str, tuple[Kind, int]] = {}
    for name, component in base.components.items():
        for key, kind, axis in class_kinds(component.skeleton, on_request=on_request):
            for stored in component.stored_parts(key):
                found[f"{name}.{stored}"] = kind, axis
    return dict(sorted(found.items()))
