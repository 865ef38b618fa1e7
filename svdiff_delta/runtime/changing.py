"""How a live model is changed: by one thread at a time, and into ordinary tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from threading import RLock
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

_GUARD: Final = RLock()
_LOCKS: Final[WeakKeyDictionary[nn.Module, Any]] = WeakKeyDictionary()


class Locked(Protocol):
    """What changes models that have locks."""

    @property
    def locks(self) -> Sequence[Any]:
        """The locks, in the order in which all take them."""


Owner = TypeVar("Owner", bound=Locked)


def locks_of(models: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the lock of each model, in the order in which all threads take them."""
    with _GUARD:
        return tuple(_LOCKS.setdefault(model, RLock()) for model in sorted(set(models), key=id))


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

    Callers may be under `torch.inference_mode()`, whose tensors no gradient flows through afterwards, or have another
    default device: `with torch.device("cuda"): attach(...)`.
    """

    @wraps(function)
    def inside(*args: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return function(*args, **options)

    return inside


def exclusive(method: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
    """Let a method change models only while no other thread does, and into ordinary tensors."""
    inner = ordinary(method)

    def inside(self: Owner, /, *args: P.args, **options: P.kwargs) -> R:
        return holding(self.locks, partial(inner, self, *args, **options))

    return cast("Callable[Concatenate[Owner, P], R]", wraps(method)(inside))
