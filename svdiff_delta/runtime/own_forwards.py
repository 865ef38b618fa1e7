"""Find a layer's own forward: on its class, or where hooks of accelerate and diffusers have put it aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final

from torch import nn

from svdiff_delta.errors import AttachError

HOOKED: Final = "_old_forward"
"""Where accelerate's hooks keep a module's own forward."""

REGISTRY: Final = "_diffusers_hook"
"""Where diffusers keeps a module's chain of hooks: group offloading, layerwise casting, caching."""


@dataclass(frozen=True)
class ForwardPlace:
    """An attribute that holds a layer's forward.

    Attributes:
        owner: whose attribute it is: the layer, or a link of a chain of hooks.
        attribute: its name.
    """

    owner: Any
    attribute: str

    @property
    def held(self) -> Any:
        """The forward in this place; None if the class's own forward counts."""
        return self.owner.__dict__.get(self.attribute)

    def put(self, forward: MethodType) -> None:
        """Let this forward be called from there."""
        setattr(self.owner, self.attribute, forward)

    def clear(self, own: MethodType) -> None:
        """Let the class's own forward be called from there again."""
        if isinstance(self.owner, nn.Module) and self.attribute == "forward":
            delattr(self.owner, self.attribute)
        else:
            setattr(self.owner, self.attribute, own)


def own_forward(module: nn.Module) -> MethodType:
    """Return the forward of a layer's class, bound to the layer."""
    return MethodType(type(module).forward, module)


def find_forward(name: str, module: nn.Module, forward: MethodType, *, after: bool = False) -> ForwardPlace:
    """Return where a layer's innermost forward is: hooks may have come or gone.

    Args:
        name: the parameter, for errors.
        module: the layer.
        forward: what is looked for.
        after: whether that was put there when a delta was attached; else a class's own forward may stand nowhere.

    Raises:
        AttachError: something else was put in its place.
    """
    outermost = ForwardPlace(module, "forward")
    if not after and outermost.held is None:
        return outermost
    for place in _places(module):
        if place.held == forward:
            return place
    when = "after the delta was attached" if after else "before the delta is attached"
    raise AttachError(
        f"{name}: the layer's forward was replaced {when}",
        fix="undo what replaced it, then detach" if after else "undo what replaced it, or attach first",
    )


def _places(module: nn.Module) -> Iterator[ForwardPlace]:
    yield ForwardPlace(module, "forward")
    yield ForwardPlace(module, HOOKED)
    for link in getattr(module.__dict__.get(REGISTRY), "_fn_refs", ()):
        yield ForwardPlace(link, "forward")
        yield ForwardPlace(link, "original_forward")
