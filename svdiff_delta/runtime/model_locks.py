"""Change a live model from one thread at a time, and with ordinary tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from threading import RLock
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.devices import on_host

P = ParamSpec("P")
R = TypeVar("R")

_GUARD: Final = RLock()
_LOCKS: Final[WeakKeyDictionary[nn.Module, Any]] = WeakKeyDictionary()


class Locked(Protocol):
    """An object that changes models and holds their locks."""

    @property
    def locks(self) -> Sequence[Any]:
        """The locks, in the order in which all take them."""


Owner = TypeVar("Owner", bound=Locked)


def locks_of(models: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the locks of models, in the order in which all threads take them.

    Each module has one, the same for all that were first asked for together. So a model and a part of it, which has
    layers of the model's, have a lock in common.
    """
    with _GUARD:
        known, lock = {}, RLock()
        for module in (module for model in models for module in model.modules()):
            own = _LOCKS.setdefault(module, lock)
            known[id(own)] = own
        return tuple(own for _, own in sorted(known.items()))


def holding(locks: Sequence[Any], action: Callable[[], R]) -> R:
    """Do something while all locks are held.

    A `with` on the lock itself takes and leaves it whatever interrupts; a stack of them has a moment in between.
    """
    if not locks:
        return action()
    with locks[0]:
        return holding(locks[1:], action)


def ordinary(function: Callable[P, R]) -> Callable[P, R]:
    """Let the tensors that a function makes be ordinary ones, on the CPU where it names no device.

    Callers may be under `torch.inference_mode()`, whose tensors no gradient flows through afterwards.
    """
    inner = on_host(function)

    @wraps(function)
    def inside(*args: P.args, **options: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return inner(*args, **options)
        with torch.inference_mode(False), torch.no_grad():
            return inner(*args, **options)

    return inside


def writing(tensors: Iterable[Tensor]) -> AbstractContextManager[object]:
    """Return what lets tensors be written to, those too that were made or moved under `torch.inference_mode()`."""
    return torch.inference_mode() if any(tensor.is_inference() for tensor in tensors) else nullcontext()


def exclusive(method: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
    """Let a method change models only while no other thread does, and into ordinary tensors."""
    inner = ordinary(method)

    def inside(self: Owner, /, *args: P.args, **options: P.kwargs) -> R:
        return holding(self.locks, partial(inner, self, *args, **options))

    return cast("Callable[Concatenate[Owner, P], R]", wraps(method)(inside))
