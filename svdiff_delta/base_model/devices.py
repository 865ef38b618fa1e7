"""Choose the device on which torch computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Final, ParamSpec, TypeVar

import torch

from svdiff_delta.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_LOADING: Final = Lock()
_LOADED: Final[set[torch.device]] = set()


def find_device(name: str | torch.device) -> torch.device:
    """Return a device by its name, such as "cpu", "cuda:1" or "mps".

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: there is no such device here ({reason})", fix='use `device="cpu"`') from None
    return device


def load_linear_algebra(device: torch.device) -> None:
    """Let torch load what decomposes matrices on a device, once and on one thread.

    It does so at the first decomposition, and fails where several threads call their first one at once ("lazy wrapper
    should be called at most once", torch 2.11 with CUDA).
    """
    with _LOADING:
        if device not in _LOADED:
            torch.linalg.eigh(torch.ones(1, 1, dtype=torch.float64, device=device))
            _LOADED.add(device)


def on_host(function: Callable[P, R]) -> Callable[P, R]:
    """Let the tensors that a function makes without naming a device be on the CPU.

    Callers may have set another default: `with torch.device("cuda"): attach(...)`. Where they have not, nothing is
    done: an interrupt within torch's own contexts leaves them half open.
    """

    @wraps(function)
    def inside(*args: P.args, **options: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return function(*args, **options)
        with torch.device("cpu"):
            return function(*args, **options)

    return inside
