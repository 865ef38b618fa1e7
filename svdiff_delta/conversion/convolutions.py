"""List the grouped and dilated convolutions of a base, which not all programs read in a LoRA (spec, section 7.10)."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError, MissingExtraError
from svdiff_delta.format.parameter import Parameter

PLAIN: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Classes that PEFT can build another one of; of a subclass it is tried."""

ALL_PLAIN: Final = frozenset({"UNet2DConditionModel"})
"""Models whose convolutions are all torch's own, of one group, undilated and padded with zeros, whose one embedding is
`class_embedding`, and whose weights all have the outputs first, however they are configured: of them neither a class
is built nor a library imported."""


class Convolutions:
    """Looks convolutions up in the classes of a base, which are built when the first one is asked for.

    Args:
        base: the base.
    """

    def __init__(self, base: Base) -> None:
        self._base = base

    def groups(self, name: str, parameter: Parameter) -> int | None:
        """Return the groups of a weight's layer, 1 if it is no convolution; None if nothing tells.

        A weight (out, in/groups, k, …) says nothing of its groups. Where no class does, one with several inputs counts
        as ungrouped, and one with a single input may be depthwise.
        """
        if len(parameter.shape) < 3 or self._is_plain(name):
            return 1
        if name in self._found:
            return self._found[name].groups
        return 1 if parameter.shape[1] > 1 or name.partition(".")[0] in self._known else None

    def unlike(self, name: str) -> str:
        """Return why the layer that PEFT puts beside a convolution would not do as it does; empty if it would.

        PEFT 0.21 builds one of the same class with kernel, stride and padding, and with nothing else.
        """
        layer = None if self._is_plain(name) else self._found.get(name)
        if layer is None:
            return ""
        if any(step != 1 for step in layer.dilation):
            return "is a dilated convolution, and PEFT's layers are not dilated"
        if layer.padding_mode != "zeros":
            return f"is a convolution with {layer.padding_mode} padding, and PEFT's layers pad with zeros"
        return (
            "" if type(layer) in PLAIN or _is_built(layer) else f"is a {type(layer).__name__}, which PEFT cannot build"
        )

    def _is_plain(self, name: str) -> bool:
        component = self._base.components.get(name.partition(".")[0])
        return component is not None and component.class_name in ALL_PLAIN

    @cached_property
    def _layers(self) -> dict[str, dict[str, _ConvNd]]:
        """The convolutions of each component whose class is known."""
        found: dict[str, dict[str, _ConvNd]] = {}
        for slot, component in self._base.components.items():
            try:
                skeleton = component.skeleton
            except (BaseError, MissingExtraError):
                continue
            layers = ((path, layer) for path, layer in skeleton.named_modules() if isinstance(layer, _ConvNd))
            keys = ((component.stored_class(f"{path}.weight"), layer) for path, layer in layers)
            found[slot] = {f"{slot}.{key}": layer for key, layer in keys if key}
        return found

    @cached_property
    def _found(self) -> dict[str, _ConvNd]:
        return {name: layer for layers in self._layers.values() for name, layer in layers.items()}

    @property
    def _known(self) -> set[str]:
        return {*self._layers}


def _is_built(layer: _ConvNd) -> bool:
    """Tell whether PEFT's call builds another layer of this class."""
    try:
        with torch.device("meta"):
            type(layer)(layer.in_channels, 1, layer.kernel_size, layer.stride, layer.padding, bias=False)  # type: ignore[call-arg]
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError):
        return False
    return True
