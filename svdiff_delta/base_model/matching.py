"""Find the component of a base that a file belongs to, where the file does not name it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from svdiff_delta.errors import BaseError

from .component import Component, aliases
from .opened import Base
from .slots import UNNAMED


def named_like(base: Base, names: Iterable[str]) -> Base:
    """Return a model that nothing names, such as a single file, as the component that all these parameters are of.

    So is a model on its own whose parameters a delta of an earlier version names without the slot of its class. Any
    other base is returned as it is.
    """
    slots = {name.partition(".")[0] for name in names}
    if base.pipeline or len(slots) != 1 or len(base.components) != 1 or UNNAMED not in slots | base.components.keys():
        return base
    (component,) = base.components.values()
    return replace(base, components={slots.pop(): component})


def paired(tuned: Base, base: Base) -> Base:
    """Return a tuned model whose components are called as those of the base.

    A model that is one component under another name is the one that it shares most weights with, by key and shape.

    Raises:
        BaseError: they have no component in common.
    """
    if tuned.components.keys() & base.components.keys():
        return tuned
    (component,) = tuned.components.values() if len(tuned.components) == 1 else (None,)
    likeness = {name: _likeness(component, other) for name, other in base.components.items()} if component else {}
    best = max(likeness, key=lambda name: likeness[name], default="")
    if component is None or not likeness[best]:
        raise BaseError(
            f"{tuned.path}: has none of the components of the base, {', '.join(base.components)}",
            fix="name a model of the same kind as the base",
        )
    return replace(tuned, components={best: component})


def _likeness(a: Component, b: Component) -> float:
    """Return the share of common weights among all weights of two components."""
    x, y = _weights(a), _weights(b)
    return len(x & y) / max(1, len(x | y))


def _weights(component: Component) -> set[tuple[str, tuple[int, ...]]]:
    return {(min(aliases(key)), entry.shape) for key, (_, entry) in component.location.items()}
