"""Refuse to load other weights into a stack of experts while one of them has a delta on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.errors import AttachError

from .obstacles import GUARDED, LOAD, is_shifted, is_there


class StackGuard:
    """Refuses to load other weights into a layer's stacked parameter while one of its experts has a delta on it.

    Args:
        name: the parameter that is shifted.
        module: the expert's weight.
    """

    def __init__(self, name: str, module: ExpertWeight) -> None:
        self._name, self._module = name, module

    def put(self) -> None:
        """Refuse from now on."""
        owner = self._module.owner.__dict__
        owner.setdefault(GUARDED, []).append(self)
        owner[LOAD] = self._load

    def _load(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        owner = self._module.owner
        for guard in owner.__dict__.get(GUARDED, ()):
            module = guard._module
            loaded = state.get(f"{prefix}{module.attribute}")
            if is_shifted(module) and loaded is not None and not is_there(module, _slice_of(module, loaded)):
                raise AttachError(
                    f"{guard._name}: a weight cannot be loaded while a delta is on it",
                    fix="detach the delta first, then load",
                )
        getattr(type(owner), LOAD)(owner, state, prefix, *rest)

    def check(self, *, force: bool = False) -> None:
        """Accept every state: a guard holds no weight that others could have changed."""

    def read(self) -> None:
        """Read nothing: a guard needs no values to be taken off."""

    def restore(self) -> None:
        """Let weights be loaded again, once no expert of the layer has a delta on it."""
        owner = self._module.owner.__dict__
        if GUARDED not in owner:
            return
        owner[GUARDED] = [guard for guard in owner[GUARDED] if guard is not self]
        if not owner[GUARDED]:
            owner.pop(GUARDED)
            owner.pop(LOAD, None)


def _slice_of(module: ExpertWeight, loaded: Any) -> Any:
    """Return what a tensor that is to be loaded has for one expert; itself where it has another shape."""
    same = isinstance(loaded, Tensor) and loaded.shape == module.stack.shape
    return module.view(loaded) if same else None if loaded is None else loaded
